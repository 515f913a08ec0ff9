// @ts-check
// Home: what needs a person first, with the answer one click away; then what runs; then what ended lately.
import * as api from "../api.js";
import * as attention from "../attention.js";
import { showFeedState } from "../connection.js";
import { announce, toast } from "../dialog.js";
import { follow } from "../feed.js";
import { count, link, plural } from "../format.js";
import { bind } from "../keys.js";
import { badge, describe, prose, title } from "../state.js";
import { againLink, requestRow, taskRow } from "./home-rows.js";
import { SteadyList, inUse, onLeave } from "../steady.js";
import { html, nothing, render } from "../vendor/lit-html/lit-html.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";

const SCOPE_KEY = "taskherd-home-scope";
const PER_LIST = 12; // tasks that are read for each list
const NEEDS_SHOWN = 12;
const RECENT = 24 * 3600; // seconds after which a failure is history
const MAX_KNOWN = 400;
const TOTALS_EVERY = 2_000; // milliseconds between two reads of the totals

/** @typedef {"mine" | "everyone"} Scope */
/** @typedef {{task: any, state: import("../state.js").Shown}} Listed */

/** What is read, beside the scope. Where the API is older than a term, that list stays empty. */
const LISTS = [
  "", "state:failed", "status:error", "health:not_running", "health:lost", "stalled:true", "status:active state:idle",
  "status:active state:working", "status:initializing", "status:pending",
];
const ENDED = "state:complete";

const NUMBERS = /** @type {const} */ ([
  ["working", "working", "state:working", (/** @type {any} */ totals) => totals.by_state.working],
  ["waiting", "waiting for someone", "waiting:true", (/** @type {any} */ totals) => totals.attention.waiting],
  ["idle", "idle", "state:idle", (/** @type {any} */ totals) => totals.by_state.idle],
  ["paused", "queued", "status:pending", (/** @type {any} */ totals) => totals.by_status.pending],
  ["failed", "failed", "failed:true", (/** @type {any} */ totals) => totals.attention.failed],
  ["lost", "lost", "health:lost", (/** @type {any} */ totals) => totals.by_health.lost],
]);

/** @type {import("../router.js").Page} */
export default function home(view) {
  new Home(view).start();
}

class Home {
  /** @param {import("../router.js").View} view */
  constructor(view) {
    this.view = view;
    /** @type {Map<string, any>} tasks by id */
    this.tasks = new Map();
    /** @type {Map<string, any>} open requests by id */
    this.requests = new Map();
    this.hasMoreRequests = false;
    /** @type {any} */
    this.totals = null;
    /** @type {Scope} */
    this.scope = localStorage.getItem(SCOPE_KEY) === "everyone" ? "everyone" : "mine";
    this.isMember = false; // whether everyone's tasks are only the caller's own
    this.loaded = false;
    /** @type {{message: string, detail?: string} | null} */
    this.failed = null;
    this.needs = new SteadyList();
    this.feed = new AbortController();
    this.totalsTimer = 0;
    /** @type {Map<string, string>} what became of a row, by its id */
    this.done = new Map();
    /** @type {Set<string>} rows with an open text field */
    this.open = new Set();
    /** @type {Set<string>} */
    this.busy = new Set();
  }

  start() {
    const { signal } = this.view;
    this.view.setTitle("Home");
    signal.addEventListener("abort", () => {
      this.feed.abort();
      clearTimeout(this.totalsTimer);
    });
    bind("Home", [
      { keys: "j", does: "Next that needs you", run: () => this.move(1) },
      { keys: "k", does: "The one before", run: () => this.move(-1) },
      { keys: "a", does: "Answer what is asked", run: () => this.answer() },
      { keys: "m", does: "Mine or everyone's", run: () => this.setScope(this.scope === "mine" ? "everyone" : "mine") },
    ], signal);
    this.draw();
    this.connect();
  }

  /** @param {Scope} scope */
  setScope(scope) {
    this.scope = scope;
    localStorage.setItem(SCOPE_KEY, scope);
    this.loaded = false;
    this.tasks.clear();
    this.requests.clear();
    this.needs = new SteadyList();
    this.connect();
    this.draw();
  }

  get terms() {
    return this.scope === "mine" ? "owner:me" : "";
  }

  connect() {
    this.feed.abort();
    this.feed = new AbortController();
    const { signal } = this.feed;
    follow({
      query: this.terms,
      signal,
      onState: (state) => {
        showFeedState(state);
        if (state === "offline" && !this.loaded) this.load(signal); // what there is, until the stream stands
      },
      onLive: () => this.load(signal), // not before: all lists would be read twice
      onChanges: (changes) => this.apply(changes),
      onRefused: (failed) => {
        this.failed = failed;
        this.draw();
      },
    });
  }

  /** @param {AbortSignal} signal */
  async load(signal) {
    const read = (/** @type {string} */ q, /** @type {string} */ more = "") =>
      api.get(`/tasks?limit=${PER_LIST}${more}&q=${encodeURIComponent(`${this.terms} ${q}`.trim())}`, { signal });
    const answers = await Promise.all([
      read(ENDED, "&sort=changed"), ...LISTS.map((q) => read(q)), this.loadRequests(signal), this.loadTotals(signal),
    ]);
    if (signal.aborted) return;
    const lists = /** @type {any[]} */ (answers.slice(0, LISTS.length + 1));
    const failed = lists.find((each) => !each.ok && each.status !== 400);
    this.failed = failed && !lists.some((each) => each.ok) ? failed : null;
    for (const answer of lists) if (answer.ok) answer.value.tasks.forEach((/** @type {any} */ task) => this.take(task));
    this.loaded = true;
    if (this.scope === "mine" && !this.tasks.size && !localStorage.getItem(SCOPE_KEY)) await this.tryEveryone(signal);
    this.draw();
    this.view.shown();
  }

  /**
   * Somebody without tasks of their own sees those of others, if there are any.
   * @param {AbortSignal} signal
   */
  async tryEveryone(signal) {
    const any = await api.get("/tasks?limit=1", { signal });
    if (!any.ok || !any.value.tasks.length || signal.aborted) return;
    this.scope = "everyone";
    this.connect();
  }

  /** @param {AbortSignal} signal */
  async loadRequests(signal) {
    const q = this.terms ? `&q=${encodeURIComponent(this.terms)}` : "";
    const answer = await api.get(`/requests?limit=50${q}`, { signal });
    if (!answer.ok || answer.unchanged) return;
    this.hasMoreRequests = answer.value.next !== null;
    this.requests = new Map(answer.value.requests.map((/** @type {any} */ each) => [each.id, each]));
  }

  /** @param {AbortSignal} signal */
  async loadTotals(signal) {
    const answer = await api.get(`/task-totals${this.terms ? `?q=${this.terms}` : ""}`, { signal });
    if (answer.ok) this.totals = answer.value;
  }

  /** @param {any} task */
  take(task) {
    const known = this.tasks.get(task.id);
    if (known && known.updated_at > task.updated_at) return false;
    this.tasks.delete(task.id);
    this.tasks.set(task.id, task);
    return true;
  }

  /** @param {Map<string, import("../feed.js").TaskChange>} changes */
  apply(changes) {
    let asks = false;
    for (const { kind, task, fields } of changes.values()) {
      if (kind === "deleted") this.tasks.delete(task.id);
      else if (this.take(task)) asks ||= fields.has("requests") || fields.has("requests_open") || kind === "created";
    }
    while (this.tasks.size > MAX_KNOWN) this.tasks.delete(/** @type {string} */ (this.tasks.keys().next().value));
    const { signal } = this.feed;
    if (asks) this.loadRequests(signal).then(() => signal.aborted || this.draw());
    if (!this.totalsTimer) {
      this.totalsTimer = setTimeout(() => {
        this.totalsTimer = 0;
        this.loadTotals(signal).then(() => signal.aborted || this.draw());
      }, TOTALS_EVERY);
    }
    attention.changed();
    this.draw();
  }

  /** The rows that need a person, by id: requests oldest first, then agents that wait, then what ended badly. */
  needing() {
    /** @type {Map<string, {kind: string, since: string, request?: any, task?: any}>} */
    const found = new Map();
    const requests = [...this.requests.values()].sort((a, b) => a.since.localeCompare(b.since));
    const asking = new Set(requests.map((each) => each.task_id));
    for (const request of requests) found.set(request.id, { kind: "request", since: request.since, request });
    const old = new Date(api.now() - RECENT * 1000).toISOString();
    const groups = { idle: /** @type {any[]} */ ([]), bad: /** @type {any[]} */ ([]) };
    for (const task of this.tasks.values()) {
      if (asking.has(task.id)) continue;
      const { word, since } = describe(task);
      if (word === "waiting" && this.hasMoreRequests) groups.idle.push({ kind: "waiting", since, task });
      else if (word === "idle") groups.idle.push({ kind: "idle", since, task });
      else if (word === "stalled" || ((word === "failed" || word === "lost") && since > old)) groups.bad.push({ kind: word, since, task });
    }
    groups.idle.sort((a, b) => a.since.localeCompare(b.since));
    groups.bad.sort((a, b) => b.since.localeCompare(a.since));
    for (const each of [...groups.idle, ...groups.bad]) found.set(each.task.id, each);
    return found;
  }

  draw() {
    if (this.view.signal.aborted) return;
    const needing = this.needing();
    const section = this.view.root.querySelector(".needs");
    const held = inUse(section);
    const ids = this.needs.update([...needing.keys()], held);
    if (!held) this.done.clear();
    if (this.loaded) attention.set(needing.size);
    this.rows = held ? new Map([...(this.rows || []), ...needing]) : needing;
    render(this.template(needing, ids), this.view.root);
    const fresh = /** @type {HTMLElement | null} */ (this.view.root.querySelector(".needs"));
    if (fresh && !fresh.dataset.watched) {
      fresh.dataset.watched = "yes";
      onLeave(fresh, () => this.draw());
    }
  }

  /**
   * @param {Map<string, any>} needing
   * @param {string[]} ids
   */
  template(needing, ids) {
    if (!this.loaded && !this.failed) return this.skeleton();
    const oldest = [...needing.values()].map((each) => each.since).filter(Boolean).sort()[0];
    const { running, ended } = this.lists();
    const scope = (/** @type {Scope} */ value, /** @type {string} */ label) => html`<label>
      <input type="radio" name="scope" .checked=${this.scope === value} @change=${() => this.setScope(value)}><span>${label}</span></label>`;
    return html`
      <section class="needs" aria-labelledby="needs">
        <div class="head">
          <h1 id="needs">${needing.size ? `${count(needing.size)} ${needing.size === 1 ? "needs" : "need"} you` : "Nothing needs you"}</h1>
          ${oldest ? html`<span class="faint">oldest <time-ago at=${oldest} form="age"></time-ago></span>` : nothing}
          ${this.needs.heldBack ? html`<span class="faint" role="status">${plural(this.needs.heldBack, "more")} when you leave this list</span>` : nothing}
          ${this.totals?.attention.failed ? html`<a class="link small" href="/tasks?q=${this.scopeTerm("failed:true changed:<1d")}">Failed today</a>` : nothing}
          <fieldset class="segments right"><legend class="unseen">Whose tasks</legend>${scope("mine", "Mine")}${scope("everyone", "Everyone’s")}</fieldset>
        </div>
        ${this.failed ? html`<p class="notice bad" role="alert">${api.explain(this.failed)}</p>` : nothing}
        ${ids.length ? html`<ul class="card rows">${repeat(ids.slice(0, NEEDS_SHOWN), (/** @type {string} */ id) => id, (/** @type {string} */ id) => this.need(id, needing.has(id)))}</ul>` : this.calm(running.length)}
        ${ids.length > NEEDS_SHOWN ? html`<p class="more"><a class="link" href="/tasks?q=${this.scopeTerm("state:idle")}">${plural(ids.length - NEEDS_SHOWN, "more")}</a></p>` : nothing}
      </section>
      ${this.totals && this.totals.total ? this.strip() : nothing}
      ${running.length ? this.taskList("running", "Running", running, "status:active state:working") : nothing}
      ${ended.length ? this.taskList("ended", "Ended lately", ended, ENDED, "&sort=changed") : nothing}`;
  }

  skeleton() {
    return html`<section class="needs"><div class="head"><h1>Home</h1></div><div class="card rows" aria-busy="true">
      ${[0, 1, 2].map(() => html`<div class="loading"></div>`)}</div></section>`;
  }

  /** @param {number} running */
  calm(running) {
    if (this.tasks.size || (this.totals && this.totals.total)) {
      return html`<p class="calm soft">${running ? `${plural(running, "agent")} at work; you will see here when one asks, waits or fails.` : "No agent is at work."}</p>`;
    }
    return html`<div class="card empty">
      <h2>${this.scope === "mine" ? "You have no tasks yet" : "There are no tasks yet"}</h2>
      <p>A task is one prompt for one agent in a workspace of its own. Start one here, or with <code>taskherd task create</code>.</p>
      <a class="button go" href="/new">New task</a>
    </div>`;
  }

  /** @param {string} q */
  scopeTerm(q) {
    return encodeURIComponent(`${this.terms} ${q}`.trim()).replaceAll("%3A", ":").replaceAll("%20", "+");
  }

  strip() {
    return html`<section aria-label="Totals"><ul class="card totals">${NUMBERS.map(([color, label, q, value]) => {
      const number = value(this.totals) || 0;
      return html`<li><a href="/tasks?q=${this.scopeTerm(q)}" class=${number ? "" : "none"}><b>${count(number)}</b>
        <span><i class="dot ${color}"></i>${label}</span></a></li>`;
    })}</ul></section>`;
  }

  lists() {
    const running = [], ended = [];
    for (const task of this.tasks.values()) {
      const state = describe(task);
      if (/^(working|starting|queued|interrupting|active)$/.test(state.word)) running.push({ task, state });
      else if (state.word === "complete") ended.push({ task, state });
    }
    running.sort((a, b) => b.task.created_at.localeCompare(a.task.created_at));
    ended.sort((a, b) => b.state.since.localeCompare(a.state.since));
    return { running: running.slice(0, PER_LIST), ended: ended.slice(0, PER_LIST) };
  }

  /**
   * @param {string} name
   * @param {string} heading
   * @param {Listed[]} rows
   * @param {string} q
   */
  taskList(name, heading, rows, q, more = "") {
    return html`<section aria-labelledby=${name}>
      <div class="head"><h2 id=${name}>${heading}</h2><a class="link small right" href="/tasks?q=${this.scopeTerm(q)}${more}">All</a></div>
      <ul class="card lines">${repeat(rows, (/** @type {Listed} */ each) => each.task.id, (/** @type {Listed} */ { task, state }) => {
        const target = link(task.current_state?.uri);
        return html`<li>
          <a class="name truncate" href=${api.taskPath(task)} title=${task.name}>${title(task)}</a>
          <span class="says truncate soft">${prose(state.says)}</span>
          <span class="where truncate">${target ? html`<a class="link" href=${target.href} rel="noopener noreferrer" target="_blank">${target.text}</a>` : html`<span class="faint">${task.template_display_name || task.template_name}</span>`}</span>
          ${this.scope === "everyone" ? html`<span class="owner truncate faint">${task.owner_name}</span>` : nothing}
          ${badge(state)}${againLink(task)}
        </li>`;
      })}</ul></section>`;
  }

  /**
   * One row that needs a person.
   * @param {string} id
   * @param {boolean} current whether it still does
   */
  need(id, current) {
    const row = this.rows?.get(id);
    if (!row) return nothing;
    const became = this.done.get(id) || (current ? "" : "No longer needs you");
    if (row.kind === "request") return requestRow(this, row.request, became);
    return taskRow(this, row, became);
  }

  /** @param {string} id */
  toggle(id) {
    if (!this.open.delete(id)) this.open.add(id);
    this.draw();
    const row = this.view.root.querySelector(`[data-id="${CSS.escape(id)}"]`);
    const field = /** @type {HTMLElement | null} */ (row?.querySelector("textarea") || row?.querySelector("button"));
    field?.focus();
  }

  /**
   * Do something about a row; what became of it is shown in its place.
   * @param {string} id
   * @param {"POST"} method
   * @param {string} path
   * @param {any} body
   * @param {string} said
   */
  async act(id, method, path, body, said) {
    const row = /** @type {HTMLElement | null} */ (this.view.root.querySelector(`[data-id="${CSS.escape(id)}"]`));
    if (row?.contains(document.activeElement)) row.focus({ preventScroll: true }); // its buttons are about to go
    this.busy.add(id);
    this.draw();
    const answer = await api.send(method, path, body);
    this.busy.delete(id);
    if (answer.ok) {
      this.done.set(id, said);
      this.open.delete(id);
      this.requests.delete(id);
      announce(said);
    } else if (!answer.aborted) toast(api.explain(answer), { bad: true });
    this.draw();
  }

  /** Go to the answers of the row with the focus, or of the first that asks something. */
  answer() {
    const row = document.activeElement?.closest(".need.ask:not(.over)") || this.view.root.querySelector(".need.ask:not(.over)");
    /** @type {HTMLElement | null | undefined} */ (row?.querySelector(".reply textarea, .acts button"))?.focus();
  }

  /** @param {number} by */
  move(by) {
    const rows = /** @type {HTMLElement[]} */ ([...this.view.root.querySelectorAll(".need")]);
    const at = rows.findIndex((each) => each.contains(document.activeElement));
    rows[Math.min(rows.length - 1, Math.max(0, at + by))]?.focus();
  }
}
