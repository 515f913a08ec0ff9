// @ts-check
// Home: what needs a person first, with the answer one click away; then what runs; then what ended lately.
import * as api from "../api.js";
import * as attention from "../attention.js";
import { follow, showFeedState } from "../feed.js";
import { compare, count, plural } from "../format.js";
import { bind } from "../keys.js";
import * as router from "../router.js";
import { describe, guarded } from "../state.js";
import { ENDED, NEEDING, SECTIONS, WORKING, overviewPath, requestsPath } from "./home-lists.js";
import { BAD, brokenRow, isUntold, needOf, taskList, taskRow, totalsStrip } from "./home-rows.js";
import { SteadyList, inUse, isPointedAt, keepRows, onLeave } from "../steady.js";
import { html, nothing, render } from "../vendor/lit-html/lit-html.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";

const PER_LIST = 12; // rows
const NEEDS_SHOWN = 12;
const MAX_KNOWN = 400;
const TOTALS_EVERY = 2_000; // milliseconds between two reads of the totals
const LONGEST = 20_000; // milliseconds after which a script is not waited for any more
const RETRY = 5_000; // milliseconds before what could not be read is read again
const OPENING = 250; // milliseconds that a page that opens waits for its rows before it says that it reads them
const ROWS_TO_COME = 3; // rows that stand for those that are being read
const AFTER_PAINT = 500; // milliseconds that a page at most waits with what does not show
const NOT_SHOWN = { message: "What agents ask could not be loaded." };

/** @typedef {"mine" | "everyone"} Scope */

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
    /** @type {typeof import("./home-requests.js").requestRow | null} */
    this.requestRow = null; // until it is loaded
    this.asked = 0; // how often requests were read so far: only the answer of the last time counts
    this.asksAgain = false; // they have changed while they were being read
    /** @type {AbortSignal | null} the signal of what reads them */
    this.asksWith = null;
    /** @type {any} */
    this.totals = null;
    /** @type {Scope} */
    this.scope = localStorage.getItem(attention.SCOPE_KEY) === "everyone" ? "everyone" : "mine";
    /** @type {Set<string>} groups of which there is more than was read */
    this.more = new Set();
    /** @type {Set<string> | null} tasks that were deleted while an overview is being read, which may have them still */
    this.deleted = null;
    this.retryTimer = 0;
    this.had = { needs: 0, running: 0, ended: 0 }; // rows, when the overview was read last
    this.loaded = false; // whether there was one
    this.following = false; // whether changes are followed since
    this.drawing = false;
    this.drawTimer = 0;
    /** @type {{message: string, detail?: string} | null} why something could not be read */
    this.failed = null;
    this.needs = new SteadyList();
    this.running = new SteadyList();
    this.ended = new SteadyList();
    /** @type {Map<string, any>} rows of what needs a person, by their ids */
    this.rows = new Map();
    /** @type {Map<string, import("./home-rows.js").Listed>} rows of the other two, by the id of their tasks */
    this.listed = new Map();
    this.feed = new AbortController();
    this.totalsTimer = 0;
    /** @type {Map<string, string>} what became of a row, by its id */
    this.done = new Map();
    /** @type {Set<string>} rows with an open text field */
    this.open = new Set();
    /** @type {Set<string>} */
    this.busy = new Set();
    /** @type {Map<string, {sent: string, key: string}>} what had no answer, by its row: the same again is not sent twice */
    this.unanswered = new Map();
  }

  start() {
    const { signal } = this.view;
    this.view.setTitle("Home");
    attention.own(signal);
    signal.addEventListener("abort", () => {
      this.feed.abort();
      api.dropBegun(); // who comes back reads what is true then
      clearTimeout(this.totalsTimer);
      clearTimeout(this.retryTimer);
      clearTimeout(this.drawTimer);
    });
    bind("Home", [
      { keys: "j", does: "Next that needs you", repeats: true, run: () => this.move(1) },
      { keys: "k", does: "The one before", repeats: true, run: () => this.move(-1) },
      { keys: "a", does: "Answer what is asked", run: () => this.answer() },
      { keys: "y", does: "Commands and raw JSON", run: () => this.showSource() },
      { keys: "m", does: "Mine or everyone's", run: () => this.setScope(this.scope === "mine" ? "everyone" : "mine") },
    ], signal);
    this.connect();
    this.drawTimer = setTimeout(() => this.draw(), OPENING);
  }

  /** @param {Scope} scope */
  setScope(scope) {
    this.scope = scope;
    localStorage.setItem(attention.SCOPE_KEY, scope);
    api.dropBegun();
    for (const list of [this.needs, this.running, this.ended]) list.ids = [];
    this.connect();
    this.draw();
  }

  get terms() {
    return this.scope === "mine" ? "owner:me" : "";
  }

  get totalsPath() {
    return `/task-totals${this.terms && `?q=${this.terms}`}`;
  }

  connect() {
    this.feed.abort();
    this.feed = new AbortController();
    attention.count(this.terms);
    this.loaded = this.following = false;
    this.failed = null;
    this.totals = null;
    this.deleted = null;
    this.more.clear();
    this.tasks.clear();
    this.requests.clear();
    this.load(this.feed.signal);
  }

  /**
   * Read everything, and follow what changes from the first time on.
   * @param {AbortSignal} signal
   */
  async load(signal) {
    clearTimeout(this.retryTimer);
    this.retryTimer = 0;
    if (this.deleted) return; // it is being read
    const deleted = (this.deleted = new Set());
    try {
      await this.read(signal);
    } catch (error) {
      console.error(error);
      if (!signal.aborted) this.retryLater(signal, { message: "What was read could not be shown." });
    } finally {
      if (this.deleted === deleted) this.deleted = null;
    }
  }

  /** @param {AbortSignal} signal */
  async read(signal) {
    const turn = (this.asked += 1);
    const answer = await api.get(overviewPath(this.terms), { signal });
    const canShow = !answer.ok || !answer.value.requests.requests.length || await Promise.race([this.loadRequestRow(), tooLong()]);
    if (signal.aborted) return;
    if (answer.ok) {
      const isFirst = !this.following;
      this.takeOverview(answer.value, canShow && turn === this.asked);
      this.loaded = true;
      this.failed = null;
      if (isFirst && await this.showsEveryone(signal)) return;
      this.draw();
      this.had = this.rowsKnown();
      if (isFirst) this.begin(signal, String(answer.value.position));
      if (!canShow) this.retryLater(signal, NOT_SHOWN);
    } else {
      if (!this.loaded && !answer.status) showFeedState("offline");
      this.retryLater(signal, answer);
    }
  }

  /**
   * Say what could not be read, and read it again after a while.
   * @param {AbortSignal} signal
   * @param {{message: string, detail?: string}} failed
   */
  retryLater(signal, failed) {
    this.failed = failed;
    this.retryTimer ||= setTimeout(() => this.load(signal), RETRY);
    this.draw();
  }

  /**
   * Follow what changes after what is shown, once that is painted.
   * @param {AbortSignal} signal
   * @param {string} position
   */
  begin(signal, position) {
    this.following = true;
    this.view.shown();
    const later = (/** @type {() => void} */ run) =>
      "requestIdleCallback" in window ? requestIdleCallback(run, { timeout: AFTER_PAINT }) : setTimeout(run);
    later(() => {
      if (signal.aborted) return;
      follow({
        query: this.terms,
        position,
        signal,
        onState: (state) => {
          showFeedState(state);
          if (state === "live" && this.failed) this.load(signal);
        },
        onLive: () => this.connect(), // changes were missed for good
        onChanges: (changes) => this.apply(changes),
        onRefused: (failed) => {
          this.failed = failed;
          this.draw();
        },
      });
      this.loadRequestRow(); // before the first request comes, and with it perhaps an outage
    });
  }

  /**
   * @param {any} overview
   * @param {boolean} areNewest whether its requests are those that were read last, and can be shown
   */
  takeOverview({ totals, requests, groups }, areNewest) {
    this.totals = totals;
    if (areNewest) this.takeRequests(requests);
    this.more.clear();
    for (const [name, group] of Object.entries(groups)) {
      if (group.next) this.more.add(name);
      for (const task of group.tasks) if (!this.deleted?.has(task.id)) this.take(task);
    }
  }

  /** Return whether rows of requests can be shown; what they need is loaded once. */
  async loadRequestRow() {
    if (!this.requestRow) ({ requestRow: this.requestRow } = await import("./home-requests.js").catch(() => ({ requestRow: null })));
    return this.requestRow !== null;
  }

  /**
   * Read again what agents ask, and once more if that changes meanwhile.
   * @param {AbortSignal} signal
   */
  async readRequests(signal) {
    this.asksAgain = true;
    if (this.asksWith === signal) return; // they are being read
    this.asksWith = signal;
    while (this.asksAgain && !signal.aborted) {
      this.asksAgain = false;
      await this.readRequestsOnce(signal);
    }
    if (this.asksWith === signal) this.asksWith = null;
  }

  /** @param {AbortSignal} signal */
  async readRequestsOnce(signal) {
    const turn = (this.asked += 1);
    const answer = await api.get(requestsPath(this.terms), { signal });
    const canShow = await this.loadRequestRow();
    if (signal.aborted || turn !== this.asked) return;
    if (!answer.ok || !canShow) return this.retryLater(signal, answer.ok ? NOT_SHOWN : answer);
    this.takeRequests(answer.value);
    this.drawSoon();
  }

  /**
   * Read everything again if there is more than was read of a section that has got short of rows.
   * @param {AbortSignal} signal
   */
  refill(signal) {
    const rows = this.rowsKnown();
    const isShort = [...this.more].some((name) => rows[SECTIONS[name]] < Math.min(PER_LIST, this.had[SECTIONS[name]]));
    this.had = rows; // so that what brings no more is not read again
    if (isShort) this.load(signal);
    else this.loadTotals(signal);
  }

  /** How many rows each section has. */
  rowsKnown() {
    return { needs: this.needing().size, running: this.running.ids.length, ended: this.ended.ids.length };
  }

  /**
   * Somebody without tasks of their own sees those of others, if there are any.
   * @param {AbortSignal} signal
   */
  async showsEveryone(signal) {
    if (this.scope !== "mine" || this.totals.total || localStorage.getItem(attention.SCOPE_KEY)) return false;
    const all = await api.get("/task-totals", { signal });
    if (signal.aborted) return true;
    if (!all.ok || !all.value.total) return false;
    this.scope = "everyone";
    this.connect();
    return true;
  }

  /** @param {any} page */
  takeRequests(page) {
    this.hasMoreRequests = page.next !== null;
    const requests = page.requests.filter((/** @type {any} */ each) => !this.deleted?.has(each.task_id));
    this.requests = new Map(requests.map((/** @type {any} */ each) => [each.id, each]));
  }

  /** @param {AbortSignal} signal */
  async loadTotals(signal) {
    const answer = await api.get(this.totalsPath, { signal });
    if (!answer.ok || signal.aborted || (answer.unchanged && this.totals)) return;
    this.totals = answer.value;
    this.drawSoon();
  }

  /** @param {any} task */
  take(task) {
    const known = this.tasks.get(task.id);
    if (known && known.updated_at > task.updated_at) return;
    this.tasks.delete(task.id);
    this.tasks.set(task.id, task);
  }

  /** @param {Map<string, import("../feed.js").TaskChange>} changes */
  apply(changes) {
    let asks = false;
    for (const { kind, task, fields } of changes.values()) {
      if (kind === "deleted") {
        this.forget(task.id);
        asks ||= task.requests_open > 0; // which an answer on its way may have still
      } else {
        this.take(task);
        asks ||= kind === "created" ? task.requests_open > 0 : fields.has("requests") || fields.has("requests_open");
      }
    }
    this.forgetSome();
    const { signal } = this.feed;
    if (asks) this.readRequests(signal);
    if (!this.totalsTimer) {
      this.totalsTimer = setTimeout(() => {
        this.totalsTimer = 0;
        if (!signal.aborted) this.refill(signal);
      }, TOTALS_EVERY);
    }
    this.draw();
  }

  /** @param {string} id of a task that was deleted */
  forget(id) {
    this.tasks.delete(id);
    for (const each of this.requests.values()) if (each.task_id === id) this.requests.delete(each.id);
    this.deleted?.add(id);
  }

  /** Forget the tasks that have not changed for longest; those that are shown, or are the next to need a person, last. */
  forgetSome() {
    if (this.tasks.size <= MAX_KNOWN) return;
    const rows = [...this.needing().values()].filter(({ task }) => task);
    const needing = rows.map(({ task }) => task.id);
    const kept = new Set([...needing, ...this.running.ids, ...this.ended.ids]);
    for (const id of this.tasks.keys()) {
      if (this.tasks.size <= MAX_KNOWN) return;
      if (!kept.has(id)) this.tasks.delete(id);
    }
    for (const row of rows.slice(NEEDS_SHOWN).reverse()) {
      if (this.tasks.size <= MAX_KNOWN) return;
      this.tasks.delete(row.task.id);
      this.more.add(groupOf(row) || "failed"); // of which there is more than is known now
    }
  }

  /** The rows that need a person, by id: requests oldest first, then agents that wait, then what ended badly. */
  needing() {
    /** @type {Map<string, {kind: string, since: string, request?: any, task?: any}>} */
    const found = new Map();
    const requests = [...this.requests.values()].sort((a, b) => compare(a.since, b.since));
    const asking = new Set(requests.map((each) => each.task_id));
    for (const request of requests) found.set(request.id, { kind: "request", since: request.since, request });
    const groups = { idle: /** @type {any[]} */ ([]), bad: /** @type {any[]} */ ([]) };
    for (const task of this.tasks.values()) {
      const need = asking.has(task.id) ? null : needOf(task);
      if (!need || (need.kind === "waiting" && !this.hasMoreRequests)) continue;
      groups[BAD.has(need.kind) ? "bad" : "idle"].push({ ...need, task });
    }
    groups.idle.sort((a, b) => compare(a.since, b.since));
    groups.bad.sort((a, b) => compare(b.since, a.since));
    for (const each of [...groups.idle, ...groups.bad]) found.set(each.task.id, each);
    return found;
  }

  /** Draw what comes together at once. */
  drawSoon() {
    if (this.drawing) return;
    this.drawing = true;
    const draw = () => this.drawing && this.draw();
    if (document.hidden) setTimeout(draw);
    else requestAnimationFrame(draw);
  }

  draw() {
    this.drawing = false;
    clearTimeout(this.drawTimer);
    if (this.view.signal.aborted) return;
    const needing = this.needing();
    const ids = this.needs.update([...needing.keys()], this.isHeld("needs", "running", "ended"));
    if (!this.isHeld("needs")) this.done.clear();
    if (this.loaded) {
      const others = [...needing.values()].filter(({ kind, task }) => isUntold(kind, task)).length;
      attention.set(tasksOf(needing) + this.further(needing).known, others, this.totals);
    }
    this.rows = keepRows(this.rows, needing, [this.needs]);
    render(this.template(needing, ids), this.view.root);
    for (const section of /** @type {NodeListOf<HTMLElement>} */ (this.view.root.querySelectorAll("section[aria-labelledby]"))) {
      if (section.dataset.watched) continue;
      section.dataset.watched = "yes";
      onLeave(section, () => this.draw());
    }
  }

  /**
   * How many more need a person than are known here: `known` of them, and whether there may be others.
   * @param {Map<string, {kind: string, task?: any}>} needing
   */
  further(needing) {
    const isMore = this.more.has("idle");
    const idle = isMore ? [...needing.values()].filter(({ kind, task }) => kind === "idle" && task.workspace_agent_health?.healthy).length : 0;
    const known = isMore ? Math.max(0, this.totals.attention.idle - idle) : 0;
    return { known, others: [...this.more].some((name) => name !== "idle" && SECTIONS[name] === "needs") || this.hasMoreRequests };
  }

  /**
   * @param {Map<string, any>} needing
   * @param {string[]} ids
   */
  template(needing, ids) {
    const further = this.further(needing);
    const total = needing.size + further.known; // rows
    const needs = `${count(tasksOf(needing) + further.known)}${further.others ? "+" : ""}`;
    const atLeast = this.more.has("idle") ? "at least " : ""; // those that have not changed for longest were read
    const oldest = [...needing.values()].map((each) => each.since).filter(Boolean).sort()[0];
    const { running, ended } = this.lists();
    const isUnknown = !this.loaded || this.failed !== null;
    const heading = total ? `${needs} ${needs === "1" ? "needs" : "need"} you` : isUnknown ? "Needs you" : "Nothing needs you";
    const address = (/** @type {string} */ q) => `/tasks?q=${this.scopeTerm(q)}`;
    const shared = { address, owners: this.scope === "everyone" };
    const scope = (/** @type {Scope} */ value, /** @type {string} */ label) => html`<label>
      <input type="radio" name="scope" .checked=${this.scope === value} @change=${() => this.setScope(value)}><span>${label}</span></label>`;
    return html`
      <section class="needs" aria-labelledby="needs">
        <div class="head">
          <h1 id="needs">${heading}</h1>
          ${oldest ? html`<span class="faint">oldest ${atLeast}<time-ago at=${oldest} form="age"></time-ago></span>` : !this.loaded && !this.failed ? html`<span class="faint">reading…</span>` : nothing}
          ${this.totals?.attention.failed ? html`<a class="link small" href=${address("failed:true changed:<1d")}>Failed today</a>` : nothing}
          <fieldset class="segments right"><legend class="unseen">Whose tasks</legend>${scope("mine", "Mine")}${scope("everyone", "Everyone’s")}</fieldset>
          <button class="source-button" title="Commands and raw JSON" aria-label="Commands and raw JSON: Home" @click=${() => this.showSource()}>{ }</button>
        </div>
        ${this.failed ? html`<p class="notice bad" role="alert">${api.explain(this.failed)}${this.retryTimer ? " Trying again…" : ""}</p>` : nothing}
        ${ids.length ? html`<div class="steady">
            ${this.needs.heldBack ? html`<p class="held-back soft" role="status">${count(this.needs.heldBack)} more when you leave this list</p>` : nothing}
            <ul class="card rows">${repeat(ids.slice(0, NEEDS_SHOWN), (/** @type {string} */ id) => id, (/** @type {string} */ id) => this.need(id, needing.has(id)))}</ul></div>`
          : !isUnknown ? this.calm(running.length) : this.failed ? nothing : rowsToCome()}
        ${total > NEEDS_SHOWN || further.others ? this.rest(needing, ids, total - NEEDS_SHOWN, address) : nothing}
      </section>
      ${this.totals && this.totals.total ? totalsStrip(this.totals, address) : nothing}
      ${running.length ? taskList("running", "Running", running, shared, WORKING) : nothing}
      ${ended.length ? taskList("ended", "Ended lately", ended, shared, ENDED, "&sort=changed") : nothing}`;
  }

  /**
   * Links to the lists that have what needs a person and is not shown, each with the number of its tasks.
   * @param {Map<string, any>} needing
   * @param {string[]} ids
   * @param {number} more
   * @param {(q: string) => string} address
   */
  rest(needing, ids, more, address) {
    const shown = new Set(ids.slice(0, NEEDS_SHOWN));
    const hidden = [...needing].filter(([id]) => !shown.has(id)).map(([, row]) => row);
    const groups = new Set([...this.more, ...(this.hasMoreRequests ? ["requests"] : []), ...hidden.map(groupOf)]);
    const links = NEEDING.filter(({ group }) => groups.has(group)).map(({ group, label, q, total, has }) => {
      const known = has ? [...this.tasks.values()].filter(has).length : 0;
      const number = total && this.totals ? count(total(this.totals)) : `${count(known)}${this.more.has(group) ? "+" : ""}`;
      return html` <a class="link" href=${address(q)}>${number} ${label}</a>`;
    });
    return html`<p class="more">${more > 0 ? html`<span class="soft">${count(more)}${this.further(needing).others ? "+" : ""} more, of</span>` : nothing}${links}</p>`;
  }

  /** @param {number} running */
  calm(running) {
    if (this.tasks.size || (this.totals && this.totals.total)) {
      const working = running || this.totals?.working;
      return html`<p class="calm soft">${working ? `${plural(working, "agent")} at work; you will see here when one asks, waits or fails.` : "No agent is at work."}</p>`;
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

  lists() {
    /** @type {import("./home-rows.js").Listed[]} */
    const running = [];
    /** @type {import("./home-rows.js").Listed[]} */
    const ended = [];
    for (const task of this.tasks.values()) {
      const state = describe(task);
      if (/^(working|starting|queued|interrupting|active)$/.test(state.word)) running.push({ task, state });
      else if (state.word === "complete") ended.push({ task, state });
    }
    running.sort((a, b) => compare(b.task.created_at, a.task.created_at));
    ended.sort((a, b) => compare(b.state.since, a.state.since));
    const areHeld = { running: this.isHeld("running", "ended"), ended: this.isHeld("ended") };
    this.listed = keepRows(this.listed, new Map([...running, ...ended].map((row) => [row.task.id, row])), [this.running, this.ended]);
    const steady = (/** @type {SteadyList} */ list, /** @type {import("./home-rows.js").Listed[]} */ rows, /** @type {boolean} */ held) =>
      list.update(rows.slice(0, PER_LIST).map(({ task }) => task.id), held).flatMap((id) => this.listed.get(id) || []);
    return { running: steady(this.running, running, areHeld.running), ended: steady(this.ended, ended, areHeld.ended) };
  }

  /**
   * Whether somebody uses one of these sections. What is above it must not grow either, or would push it down.
   * @param {import("./home-lists.js").Section[]} sections
   */
  isHeld(...sections) {
    return sections.some((each) => inUse(this.section(each)));
  }

  /** @param {string} name */
  section(name) {
    return this.view.root.querySelector(`section[aria-labelledby=${name}]`);
  }

  /**
   * One row that needs a person.
   * @param {string} id
   * @param {boolean} current whether it still does
   */
  need(id, current) {
    const row = this.rows.get(id);
    if (!row) return nothing;
    const became = this.done.get(id) || (current ? "" : "No longer needs you");
    const draw = () => (row.kind === "request" ? this.requestRow?.(this, row.request, became) : taskRow(this, row, became));
    return guarded(draw, () => brokenRow(id, row));
  }

  /** @param {string} id */
  toggle(id) {
    if (!this.open.delete(id)) this.open.add(id);
    this.draw();
    const row = this.view.root.querySelector(`[data-id="${CSS.escape(id)}"]`);
    const field = /** @type {HTMLElement | null} */ (row?.querySelector("textarea") || row?.querySelector("button") || row);
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
    const sent = JSON.stringify([path, body]);
    const earlier = this.unanswered.get(id);
    const key = body && earlier?.sent === sent ? earlier.key : api.newKey();
    const answer = await api.send(method, path, body, { key });
    if (body && api.isUnsettled(answer)) this.unanswered.set(id, { sent, key });
    else if (body) this.unanswered.delete(id);
    this.busy.delete(id);
    if (answer.ok) {
      this.done.set(id, said);
      this.open.delete(id);
      this.requests.delete(id);
      router.announce(said);
    } else if (!answer.aborted) {
      const { toast } = await import("../dialog.js"); // loaded since the first rows were shown
      toast(api.explain(answer), { bad: true });
    }
    this.draw();
    return answer.ok;
  }

  async showSource() {
    const { quote, showSource } = await import("../task/commands.js");
    const query = this.terms && ` --query ${quote(this.terms)}`;
    const others = [
      { path: overviewPath(this.terms), cli: [`task overview${query}`] },
      { path: this.totalsPath, cli: [`task totals${query}`] },
    ];
    showSource({ title: "Home", path: requestsPath(this.terms), cli: [`requests${query}`], others });
  }

  /** The rows that need a person, or did. */
  needRows() {
    return /** @type {HTMLElement[]} */ ([...this.view.root.querySelectorAll(".need[data-id]")]);
  }

  /** Show what is held back if nothing but the focus in a row that is over holds it; then nothing has the focus. */
  takeIn() {
    const isOver = document.activeElement?.closest(".need.over");
    if (!isOver || ["needs", "running", "ended"].some((each) => isPointedAt(this.section(each)))) return;
    /** @type {HTMLElement} */ (document.activeElement).blur();
    this.draw();
  }

  /** Go to the answers of the row with the focus, or of the first that asks something. */
  answer() {
    this.takeIn();
    const row = document.activeElement?.closest(".need.ask:not(.over)") || this.view.root.querySelector(".need.ask:not(.over)");
    /** @type {HTMLElement | null | undefined} */ (row?.querySelector(".reply textarea, .acts button"))?.focus();
  }

  /** @param {number} by */
  move(by) {
    const before = this.needRows();
    const passed = before.slice(0, before.findIndex((each) => each.contains(document.activeElement)) + 1);
    this.takeIn();
    const rows = this.needRows();
    const at = rows.findLastIndex((each) => passed.includes(each)); // of the row with the focus, or of the last one above it that is left
    const isLeft = passed.length === 0 || rows[at] === passed.at(-1);
    rows[Math.min(rows.length - 1, Math.max(0, at + (isLeft || by > 0 ? by : by + 1)))]?.focus();
  }
}

/**
 * The number of tasks that rows are about, of which each may have several requests.
 * @param {Map<string, {request?: any, task?: any}>} rows
 */
function tasksOf(rows) {
  return new Set([...rows.values()].map(({ request, task }) => request?.task_id ?? task.id)).size;
}

/**
 * The group of tasks that has a row which needs a person.
 * @param {{kind: string, task?: any}} row
 */
function groupOf({ kind, task }) {
  if (!BAD.has(kind)) return kind === "idle" ? "idle" : "requests";
  return NEEDING.find(({ has }) => has?.(task))?.group;
}

/** Return false after as long as a script may take. */
function tooLong() {
  return new Promise((done) => setTimeout(done, LONGEST, false));
}

/** Rows that stand for those that are being read. */
function rowsToCome() {
  return html`<ul class="card rows" aria-busy="true">${Array.from({ length: ROWS_TO_COME }, () => html`<li class="loading need" aria-hidden="true"></li>`)}</ul>`;
}
