// @ts-check
// One task: what it does now, the conversation as it happens, what it asks, and everything that people do about it.
import * as api from "../api.js";
import * as attention from "../attention.js";
import { toast } from "../dialog.js";
import * as feed from "../feed.js";
import { link } from "../format.js";
import * as keys from "../keys.js";
import * as router from "../router.js";
import { badge, describe, exitSays, firstLine, guarded, prose, title } from "../state.js";
import { inUse, SteadyList } from "../steady.js";
import { html, nothing, render } from "../vendor/lit-html/lit-html.js";
import { ACTIONS } from "../task/actions.js";
import { Builds } from "../task/builds.js";
import { quote, showSource, sourceButton } from "../task/commands.js";
import { composer } from "../task/composer.js";
import { Conversation, PAGE } from "../task/conversation.js";
import { factsView, inboxView, whyView } from "../task/facts.js";
import { pendingAnswers, requestCards } from "../task/requests.js";
import { spentView } from "../task/spent.js";
import { Timeline } from "../task/timeline.js";

const DETAILS_EVERY = 2_000; // milliseconds between two reads of what stands beside the conversation
const DURATIONS_EVERY = 5_000; // and of the time in each state, for which the API goes through thousands of changes
const MOST_BETWEEN = 30_000; // milliseconds, as above, after reads that failed
const GONE_AFTER = 1_000; // milliseconds that the change which ended the stream may take; changes are merged for a while
const PASSING = /^(0|429|5\d\d)$/; // statuses of failures that may be over soon
const IS_ID = /^[0-9a-f-]{36}$/i;
const WIDE = matchMedia("(min-width: 961px)");

/** @type {import("../router.js").Page} */
export default function task(view) {
  new TaskPage(view).start();
}

class TaskPage {
  /** @param {import("../router.js").View} view */
  constructor(view) {
    this.view = view;
    this.open = new AbortController(); // until the page is left, or its task is gone
    view.signal.addEventListener("abort", () => this.open.abort(), { once: true });
    /** @type {any} */
    this.task = null;
    /** @type {any} */
    this.explained = null;
    /** @type {Map<string, import("../task/requests.js").AgentRequest>} by their ids, in their order */
    this.requests = new Map();
    this.asked = new SteadyList();
    /** @type {import("../task/spent.js").Durations | null} */
    this.durations = null;
    this.durationsOf = ""; // the state that the task had when they were read
    this.durationsAt = 0;
    this.durationsTimer = 0;
    this.timeline = new Timeline();
    this.builds = new Builds({ signal: this.open.signal, redraw: () => this.render(), more: () => this.readSoon() });
    /** @type {Set<string>} names of actions that are being done */
    this.doing = new Set();
    /** @type {{name: string, task: any} | null} the action that the API accepted last, and the task as it was then */
    this.accepted = null;
    this.ended = ""; // why there is nothing to show any more
    this.readAt = 0;
    this.wait = DETAILS_EVERY;
    this.isStale = false; // something could not be read
    this.requestsAsked = this.requestsTaken = 0; // which reads of the requests were begun, and taken: a later one is not overwritten
    this.timer = 0;
    this.reading = false;
    this.renderFrame();
    this.conversation = new Conversation(/** @type {HTMLElement} */ (view.root.querySelector(".conversation-log")), {
      path: () => this.path, signal: this.open.signal, onRead: () => this.opened(),
    });
  }

  /** The task's path in the API: by its ids once they are known, as another task may take the name of a deleted one. */
  get path() {
    const { user, task: name } = this.view.params;
    const [owner, id] = this.task ? [this.task.owner_id, this.task.id] : [user, name];
    return `/tasks/${encodeURIComponent(owner)}/${encodeURIComponent(id)}`;
  }

  start() {
    const { signal } = this.open;
    this.view.setTitle(IS_ID.test(this.view.params.task) ? "Task" : this.view.params.task);
    signal.addEventListener("abort", () => [this.timer, this.durationsTimer].forEach(clearTimeout), { once: true });
    feed.follow({
      path: () => `${this.path}/watch?logs=${PAGE}`, // one stream for both: browsers have six connections for all pages
      snapshot: true,
      signal,
      onChanges: (changes) => changes.forEach((change) => this.changed(change)),
      onLive: () => this.readSoon(),
      onOther: (event, data) => {
        if (event === "task.logs") this.conversation.receive(data);
        else if (event === "task.inbox") this.readSoon();
      },
      onState: (state) => {
        feed.showFeedState(state);
        if (state === "live" && this.isStale) this.readNow();
      },
      onRefused: (failed) => this.refused(failed),
    });
    this.conversation.start();
    keys.bind("This task", [
      ...ACTIONS.map((action) => ({ keys: action.key, does: action.label.replace("…", ""), run: () => this.run(action) })),
      { keys: "m", does: "Say something to the agent", run: () => this.focus(".composer textarea") },
      { keys: "a", does: "Answer what it asks", run: () => this.focus(".answer button, .answer textarea", "It asks nothing now.") },
      { keys: "x", does: "Unfold or fold all tool calls", run: () => this.conversation.toggleAll() },
      { keys: "o", does: "Open its pull request", run: () => this.openLink() },
      { keys: "G", does: "Go to the end of the conversation", run: () => this.conversation.toEnd() },
      { keys: "y", does: "Commands and raw JSON", run: () => showSource(this.source()) },
    ], signal);
    const onWidth = () => this.render();
    WIDE.addEventListener("change", onWidth, { signal });
    const clock = setInterval(() => document.hidden || this.render(), 15_000); // the bar of time goes on
    signal.addEventListener("abort", () => clearInterval(clock), { once: true });
  }

  /** Show the page as ready once the conversation and what stands beside it are there. */
  opened() {
    if ("ready" in this.view.root.dataset || !this.conversation.read || !this.explained) return;
    this.view.root.dataset.ready = "";
    this.view.shown();
    if (!router.scrollOf() && this.task && !this.isOver()) this.conversation.scrollToEnd();
  }

  isOver() {
    return /^(complete|failed|lost|paused|ended)$/.test(describe(this.task).word);
  }

  /** @param {import("../feed.js").TaskChange} change */
  changed({ kind, task: document_, fields }) {
    if (kind === "deleted") return this.end("The task was deleted.");
    const before = this.task;
    const [shown, now] = [before && describe(before), describe(document_)];
    if (shown && shown.word !== now.word) router.announce(`${now.word}: ${now.says}`);
    this.task = document_;
    this.view.setTitle(title(document_));
    attention.changed();
    if (kind === "snapshot" || !before || fields.has("requests") || fields.has("requests_open")) this.readRequests();
    this.render();
    this.readSoon();
  }

  /** @param {{status: number, message: string}} failed why the stream of the task cannot be opened, or not again */
  refused({ status, message }) {
    if (status !== 404) return this.end(message);
    if (!this.task) return this.end("There is no such task, or you may not see it.");
    setTimeout(() => this.end("The task is gone, or you may not see it any more."), GONE_AFTER); // if no change says that it was deleted
  }

  /** @param {string} reason */
  end(reason) {
    if (this.ended || this.view.signal.aborted) return;
    this.ended = reason;
    this.open.abort();
    feed.showFeedState("ended");
    this.view.setTitle(this.task ? title(this.task) : "Not found");
    render(html`<div class="empty"><h1 dir="auto">${this.task ? title(this.task) : this.view.params.task}</h1><p>${reason}</p>
      <p><a class="button" href="/tasks">Go to the tasks</a> <a class="button" href="/deleted">Deleted tasks</a></p></div>`, this.view.root);
    this.view.root.dataset.ready = "";
  }

  /** Read what the agent asks, or did. */
  async readRequests() {
    const number = (this.requestsAsked += 1);
    const answer = await api.get(`${this.path}/requests`, { signal: this.open.signal, cached: false });
    if (!answer.ok || this.ended || number < this.requestsTaken) return answer;
    this.requestsTaken = number;
    this.requests = new Map(answer.value.requests.map((/** @type {any} */ each) => [each.id, each]));
    this.render();
    return answer;
  }

  /** Read what stands beside the conversation, at most every two seconds. */
  readSoon() {
    if (this.timer || this.reading) {
      this.readAgain = true;
      return;
    }
    this.timer = setTimeout(() => this.read(), Math.max(0, this.readAt + this.wait - Date.now()));
  }

  /** The same after reads that failed, without waiting for longer and longer. */
  readNow() {
    clearTimeout(this.timer);
    this.timer = 0;
    this.wait = DETAILS_EVERY;
    this.readSoon();
  }

  async read() {
    this.timer = 0;
    this.readAt = Date.now();
    this.reading = true;
    this.readAgain = false;
    const { signal } = this.open;
    const answers = await Promise.all([
      api.get(`${this.path}/explain`, { signal, cached: false }),
      api.get(`${this.path}/events?after=${this.timeline.position}&limit=500&newest=true`, { signal, cached: false }),
      this.readDurations(),
      api.get(`/workspaces/${this.task?.id}/builds?limit=${this.builds.limit}`, { signal, cached: false }),
      this.readRequests(),
    ]);
    this.reading = false;
    if (signal.aborted) return;
    const [explained, events, , builds] = answers;
    if (explained.ok) this.explained = explained.value;
    if (events.ok) this.timeline.add(events.value);
    if (builds.ok) this.builds.set(builds.value);
    this.isStale = answers.some((each) => each && PASSING.test(String(each.ok ? 200 : each.status)));
    this.wait = this.isStale ? Math.min(2 * this.wait, MOST_BETWEEN) : DETAILS_EVERY;
    this.render();
    this.opened();
    if (this.readAgain || this.isStale) this.readSoon();
  }

  /** Read the time in each state once the task has another one; between, the page goes on counting. */
  async readDurations() {
    const { task } = this;
    const state = JSON.stringify([task?.status, task?.current_state?.state, task?.workspace_agent_health?.reason, task?.agent_exit?.why, !!task?.requests_open]);
    if (state === this.durationsOf) return null;
    const wait = this.durationsAt + DURATIONS_EVERY - Date.now();
    if (wait > 0) {
      clearTimeout(this.durationsTimer);
      this.durationsTimer = setTimeout(() => this.readSoon(), wait);
      return null;
    }
    const answer = await api.get(`${this.path}/durations`, { signal: this.open.signal, cached: false });
    if (!answer.ok) return answer;
    this.durations = answer.value;
    this.durationsOf = state;
    this.durationsAt = Date.now();
    return answer;
  }

  /** @param {import("../task/actions.js").Action} action */
  async run(action) {
    const { task } = this;
    if (!task || this.doing.has(action.name) || (this.accepted?.name === action.name && this.accepted.task === task)) return; // it shows soon
    if (!action.may(this.task, this.explained)) return toast(action.unless?.(this.task, this.explained) || `${action.label.replace("…", "")}: not now.`);
    const gone = () => {
      toast(`${title(this.task)} was deleted.`);
      if (!this.view.signal.aborted) router.go("/tasks");
    };
    const context = { task: this.task, path: this.path, changed: () => this.readSoon(), gone };
    this.doing.add(action.name);
    try {
      if (await action.run(context)) this.accepted = { name: action.name, task };
    } finally {
      this.doing.delete(action.name);
    }
  }

  /**
   * @param {string} selector
   * @param {string} [missing] what to say if nothing is there
   */
  focus(selector, missing) {
    const found = /** @type {HTMLElement | null} */ (this.view.root.querySelector(selector));
    if (!found && missing) toast(missing);
    found?.focus();
    found?.scrollIntoView({ block: "nearest" });
  }

  openLink() {
    const found = link(this.task?.current_state?.uri);
    if (found) open(found.href, "_blank", "noopener,noreferrer");
    else toast("It has named no pull request, nor another link.");
  }

  /** How commands name the task: the address may have its id. */
  get cliName() {
    const { user, task: name } = this.view.params;
    return quote(this.task ? `${this.task.owner_name}/${this.task.name}` : `${user}/${name}`);
  }

  source() {
    return { title: "This task", path: this.path, cli: [`task show ${this.cliName}`, `task watch ${this.cliName}`] };
  }

  logSource() {
    return { title: "The conversation", path: `${this.path}/logs?limit=100`, cli: [`task logs -f ${this.cliName}`] };
  }

  renderFrame() {
    render(html`<div class="task-head"></div><div class="task-columns">
      <section class="conversation" aria-label="Conversation"><div class="conversation-log"></div><div class="conversation-end"></div></section>
      <aside class="task-side" aria-label="About this task"></aside></div>`, this.view.root);
  }

  render() {
    const { root } = this.view;
    if (this.ended || !this.task) return;
    const { status, current_state: state } = this.task;
    const working = status === "active" && state?.state === "working" && !this.task.agent_exit;
    const instead = () => html`<p class="problem">This part of the page could not be shown.</p>`;
    const part = (/** @type {string} */ name, /** @type {() => any} */ draw) => guarded(
      () => render(draw(), /** @type {HTMLElement} */ (root.querySelector(name))),
      () => render(instead(), /** @type {HTMLElement} */ (root.querySelector(name))),
    );
    part(".task-head", () => this.head());
    part(".task-side", () => this.side());
    part(".conversation-end", () => composer({ task: this.task, path: this.path, working, sent: () => this.readSoon() }));
    const tail = [() => inboxView(this.explained), () => this.asks(), () => this.stopped(working)].map((draw) => guarded(draw, instead));
    this.conversation.setTail(html`${tail[0]}${tail[1]}${tail[2]}`, this.task.template_display_name || "Agent");
  }

  /** What it asks; nothing moves while somebody is about to answer. */
  asks() {
    const { root } = this.view;
    const open = [...this.requests.values()].filter((each) => each.state === "open").map((each) => each.id);
    const ids = this.asked.update(open, inUse(root.querySelector(".asks")));
    const shown = /** @type {import("../task/requests.js").AgentRequest[]} */ (ids.map((id) => this.requests.get(id)).filter(Boolean));
    const pending = [...this.requests.values()].filter((each) => each.state === "answered" && !each.closed_at && !each.answer.delivered_at && !ids.includes(each.id));
    if (!shown.length) return pendingAnswers(pending);
    const cli = `task requests ${this.cliName}`;
    const answered = () => { this.readRequests(); this.readSoon(); attention.changed(); };
    return html`${pendingAnswers(pending)}${requestCards(shown, { heldBack: this.asked.heldBack, path: this.path, cli, answered, left: () => this.render() })}`;
  }

  head() {
    const shown = describe(this.task, this.explained?.runner);
    const pull = link(this.task.current_state?.uri);
    const may = ACTIONS.filter((each) => each.may(this.task, this.explained));
    const prompt = this.task.initial_prompt;
    const button = (/** @type {import("../task/actions.js").Action} */ each, className = "button") => html`
      <button class=${each.name === "resume" ? "button go" : className} aria-keyshortcuts=${each.key} @click=${(/** @type {MouseEvent} */ { detail }) => detail < 2 && this.run(each)}>${each.label}</button>`; // of a double click, the first
    return html`<div class="task-title"><h1 dir="auto">${title(this.task)}</h1>${badge(shown)}
        ${pull ? html`<a class="pill" href=${pull.href} title=${pull.href} rel="noopener noreferrer" target="_blank">${pull.text}<span class="unseen"> (opens in a new tab)</span></a>` : nothing}</div>
      <div class="task-actions">${may.filter((each) => !each.rare).map((each) => button(each))}
        <details class="menu"><summary class="button" aria-label="More actions">⋯</summary><div class="menu-items">
          ${may.filter((each) => each.rare).map((each) => html`<button class=${each.danger ? "item danger" : "item"} @click=${() => this.run(each)}>${each.label} <kbd>${each.key}</kbd></button>`)}
          <button class="item" @click=${() => showSource(this.source())}>Commands and raw JSON <kbd>y</kbd></button>
          <button class="item" @click=${() => showSource(this.logSource())}>The same of the conversation</button></div></details></div>
      <p class="now" dir="auto">${prose(shown.says)}</p>
      <details class="prompt"><summary><span class="truncate"><span class="faint">Prompt</span> <bdi>${firstLine(prompt)}</bdi></span></summary><div class="prose" dir="auto" tabindex="0" role="group" aria-label="Prompt">${prompt}</div></details>`;
  }

  /** @param {boolean} working */
  stopped(working) {
    const { agent_exit: exit } = this.task;
    if (working) return html`<p class="doing"><i class="dot working live"></i><span dir="auto">${prose(describe(this.task).says)}</span></p>`;
    if (!exit || exit.why === "stopped") return nothing;
    const { color } = describe(this.task);
    return html`<section class="ended ${color}" aria-label="How it ended"><h2><i class="dot"></i>${exitSays({ ...exit, words: "" }, this.explained?.runner)} <time-ago class="faint tiny" at=${exit.at}></time-ago></h2>
      ${exit.words ? html`<pre dir="auto" tabindex="0" role="group" aria-label="Its last words">${exit.words}</pre>` : nothing}
      ${this.explained?.resume.value ? html`<p class="soft small">Resume starts its agent again in the same workspace.</p>` : nothing}</section>`;
  }

  side() {
    const part = (/** @type {string} */ name, /** @type {any} */ content, /** @type {{path: string, cli: string[]}} */ source) => (content === nothing ? nothing : html`
      <section><div class="side-head"><h2>${name}</h2>${sourceButton({ title: name, ...source })}</div>${content}</section>`);
    const { path, cliName: name } = this;
    return html`<details class="side" ?open=${WIDE.matches}><summary>About this task</summary>
      ${this.durations ? part("Time", spentView(this.durations), { path: `${path}/durations`, cli: [`task durations ${name}`] }) : nothing}
      ${part("Facts", factsView(this.task, this.explained), { path, cli: [`task show ${name}`] })}
      ${part("Why", whyView(this.explained, this.task), { path: `${path}/explain`, cli: [`task explain ${name}`] })}
      ${part("Timeline", this.timeline.view(() => this.render()), { path: `${path}/events?newest=true`, cli: [`task events ${name}`] })}
      ${this.builds.builds.length ? part("Starts and stops", this.builds.view(name), { path: `/workspaces/${this.task.id}/builds`, cli: [`task builds ${name}`] }) : nothing}</details>`;
  }
}
