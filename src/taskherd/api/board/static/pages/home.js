// @ts-check
// Home: what needs a person first, with the answer one click away; then what runs; then what ended lately.
import * as api from "../api.js";
import * as attention from "../attention.js";
import { follow, showFeedState } from "../feed.js";
import { compare, count, plural } from "../format.js";
import { bind } from "../keys.js";
import * as router from "../router.js";
import { describe } from "../state.js";
import { ASKED, ENDED, IDLE, PARTS, pathOf, room } from "./home-lists.js";
import { BAD, needOf, rowsToCome, taskList, taskRow, totalsStrip } from "./home-rows.js";
import { SteadyList, inUse, onLeave } from "../steady.js";
import { html, nothing, render } from "../vendor/lit-html/lit-html.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";

const PER_LIST = 12; // rows
const NEEDS_SHOWN = 12;
const MAX_KNOWN = 400;
const TOTALS_EVERY = 2_000; // milliseconds between two reads of the totals
const RETRY = 5_000; // milliseconds before lists that could not be read are read again
const TOGETHER = 100; // milliseconds that a list waits for the others before it is drawn
const OPENING = 250; // milliseconds that a page that opens waits for its lists before it keeps room for them

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
    /** @type {any} */
    this.totals = null;
    /** @type {Scope} */
    this.scope = localStorage.getItem(attention.SCOPE_KEY) === "everyone" ? "everyone" : "mine";
    /** @type {Set<import("./home-lists.js").Part>} what is being read */
    this.late = new Set(PARTS);
    this.waiting = { idle: 0, bad: 0 }; // rows that were read and wait for those above them
    /** @type {Set<import("./home-lists.js").Part>} of which there is more than was read */
    this.more = new Set();
    /** @type {Set<import("./home-lists.js").Part>} what could not be read */
    this.unread = new Set();
    this.retryTimer = 0;
    this.had = { needs: 0, running: 0, ended: 0 }; // rows, when lists were read last
    this.loaded = false; // whether all lists are there
    this.hasDrawn = false;
    this.drawing = false;
    this.drawTimer = 0;
    /** @type {{message: string, detail?: string} | null} */
    this.failed = null;
    this.needs = new SteadyList();
    this.running = new SteadyList();
    this.ended = new SteadyList();
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
      { keys: "j", does: "Next that needs you", run: () => this.move(1) },
      { keys: "k", does: "The one before", run: () => this.move(-1) },
      { keys: "a", does: "Answer what is asked", run: () => this.answer() },
      { keys: "y", does: "Commands and raw JSON", run: () => this.showSource() },
      { keys: "m", does: "Mine or everyone's", run: () => this.setScope(this.scope === "mine" ? "everyone" : "mine") },
    ], signal);
    this.connect(); // before anything is drawn, so that the API works meanwhile
    if (api.allBegun) this.drawSoon();
    else this.draw();
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

  connect() {
    this.feed.abort();
    this.feed = new AbortController();
    const { signal } = this.feed;
    attention.count(this.terms);
    this.loaded = false;
    this.totals = null;
    this.more.clear();
    this.unread.clear();
    clearTimeout(this.retryTimer);
    this.retryTimer = 0;
    this.late = new Set(PARTS);
    this.tasks.clear();
    this.requests.clear();
    const totals = this.loadTotals(signal).then(() => this.tryEveryone(signal)); // while the stream is being opened
    follow({
      query: this.terms,
      signal,
      onState: (state) => {
        showFeedState(state);
        if (state === "offline" && !this.loaded) this.load(signal, totals); // what there is, until the stream stands
        if (state === "live") this.retry(signal);
      },
      onLive: () => this.load(signal, totals), // not before: all lists would be read twice
      onChanges: (changes) => this.apply(changes),
      onRefused: (failed) => {
        this.failed = failed;
        this.draw();
      },
    });
  }

  /**
   * Read the lists that have something in them; the totals, read again, say also which have got something meanwhile.
   * @param {AbortSignal} signal
   * @param {Promise<void>} known
   */
  async load(signal, known) {
    await Promise.all([known, api.allBegun]);
    if (signal.aborted) return;
    /** @type {Set<import("./home-lists.js").Part>} */
    const asked = new Set();
    /** @type {any[]} */
    const answers = [];
    const read = async () => {
      const parts = PARTS.filter((part) => !asked.has(part) && (!this.totals || part.most(this.totals) > 0));
      if (!asked.size) this.late.clear();
      for (const part of parts) asked.add(part) && this.late.add(part);
      this.drawSoon();
      answers.push(...await Promise.all(parts.map((part) => this.read(part, signal))));
    };
    const again = this.loadTotals(signal).then(() => (signal.aborted ? undefined : read()));
    for (const reading of [read(), again]) {
      await reading;
      if (signal.aborted) return;
      const failed = answers.find((each) => !each.ok && each.status !== 400);
      this.failed = failed && !answers.some((each) => each.ok) ? failed : null;
      const isFirst = !this.loaded;
      this.loaded = true;
      this.draw();
      this.had = this.rowsKnown();
      if (isFirst) this.view.shown();
    }
    this.loadRequestRow(); // before the first request comes, and with it perhaps an outage
  }

  /** Return whether rows of requests can be shown; what they need is loaded once. */
  async loadRequestRow() {
    if (!this.requestRow) ({ requestRow: this.requestRow } = await import("./home-requests.js").catch(() => ({ requestRow: null })));
    return this.requestRow !== null;
  }

  /**
   * @param {import("./home-lists.js").Part} part
   * @param {AbortSignal} signal
   */
  async read(part, signal) {
    const reading = api.get(pathOf(part, this.terms), { signal });
    const turn = part === ASKED ? (this.asked += 1) : 0;
    const canShow = part !== ASKED || await this.loadRequestRow();
    const answer = await reading;
    if (signal.aborted || (part === ASKED && turn !== this.asked)) return answer;
    this.late.delete(part);
    this.unread.delete(part);
    if (part === ASKED) {
      if (!canShow) this.unread.add(part);
      else if (answer.ok) this.takeRequests(answer.value);
    } else if (answer.ok) answer.value.tasks.forEach((/** @type {any} */ task) => this.take(task));
    if (answer.ok) this.failed = null;
    else if (answer.status !== 400) this.unread.add(part); // 400: the API is older than a term
    if (this.unread.size) this.retryTimer ||= setTimeout(() => this.retry(signal), RETRY);
    if (answer.ok) this.more[answer.value.next ? "add" : "delete"](part);
    if (this.late.size) this.drawTimer ||= setTimeout(() => this.draw(), TOGETHER);
    else this.drawSoon();
    return answer;
  }

  /**
   * Read again what could not be read.
   * @param {AbortSignal} signal
   */
  retry(signal) {
    clearTimeout(this.retryTimer);
    this.retryTimer = 0;
    if (signal.aborted) return;
    for (const part of this.unread) this.read(part, signal);
  }

  /**
   * Read lists again of which there is more than was read, when their section has got short of rows.
   * @param {AbortSignal} signal
   */
  async refill(signal) {
    const rows = this.rowsKnown();
    const parts = [...this.more].filter((part) => part !== ASKED && rows[part.section] < Math.min(PER_LIST, this.had[part.section]));
    this.had = rows; // so that what brings no more is not read again
    await Promise.all(parts.map((part) => this.read(part, signal)));
    if (parts.length && !signal.aborted) this.had = this.rowsKnown();
  }

  /** How many rows each section has. */
  rowsKnown() {
    return { needs: this.needing().size, running: this.running.ids.length, ended: this.ended.ids.length };
  }

  /**
   * Somebody without tasks of their own sees those of others, if there are any.
   * @param {AbortSignal} signal
   */
  async tryEveryone(signal) {
    if (signal.aborted || this.scope !== "mine" || !this.totals || this.totals.total || localStorage.getItem(attention.SCOPE_KEY)) return;
    const all = await api.get("/task-totals", { signal });
    if (!all.ok || !all.value.total || signal.aborted) return;
    this.scope = "everyone";
    this.connect();
  }

  /** @param {any} page */
  takeRequests(page) {
    this.hasMoreRequests = page.next !== null;
    this.requests = new Map(page.requests.map((/** @type {any} */ each) => [each.id, each]));
  }

  /** @param {AbortSignal} signal */
  async loadTotals(signal) {
    const answer = await api.get(`/task-totals${this.terms ? `?q=${this.terms}` : ""}`, { signal });
    if (!answer.ok || signal.aborted || (answer.unchanged && this.totals)) return;
    this.totals = answer.value;
    this.drawSoon();
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
    this.forgetSome();
    const { signal } = this.feed;
    if (asks) this.read(ASKED, signal);
    if (!this.totalsTimer) {
      this.totalsTimer = setTimeout(() => {
        this.totalsTimer = 0;
        if (signal.aborted) return;
        this.loadTotals(signal);
        this.refill(signal);
      }, TOTALS_EVERY);
    }
    this.draw();
  }

  /** Forget the tasks that have not changed for longest; those that are shown, or are the next to need a person, last. */
  forgetSome() {
    if (this.tasks.size <= MAX_KNOWN) return;
    const needing = [...this.needing().values()].flatMap(({ task }) => task?.id ?? []);
    const kept = new Set([...needing, ...this.running.ids, ...this.ended.ids]);
    for (const id of this.tasks.keys()) {
      if (this.tasks.size <= MAX_KNOWN) return;
      if (!kept.has(id)) this.tasks.delete(id);
    }
    for (const id of needing.slice(NEEDS_SHOWN).reverse()) {
      if (this.tasks.size <= MAX_KNOWN) return;
      this.tasks.delete(id);
    }
  }

  /**
   * The rows that need a person, by id: requests oldest first, then agents that wait, then what ended badly. Each of
   * these comes when those above it are there, so that nothing is pushed down.
   */
  needing() {
    /** @type {Map<string, {kind: string, since: string, request?: any, task?: any}>} */
    const found = new Map();
    const requests = [...this.requests.values()].sort((a, b) => compare(a.since, b.since));
    const asking = new Set(requests.map((each) => each.task_id));
    for (const request of requests) found.set(request.id, { kind: "request", since: request.since, request });
    const isIdleThere = !this.late.has(ASKED) && !this.late.has(IDLE);
    const isBadThere = isIdleThere && ![...this.late].some(({ section }) => section === "needs");
    const groups = { idle: /** @type {any[]} */ ([]), bad: /** @type {any[]} */ ([]) };
    for (const task of this.tasks.values()) {
      const need = asking.has(task.id) ? null : needOf(task);
      if (!need || (need.kind === "waiting" && !this.hasMoreRequests)) continue;
      groups[BAD.has(need.kind) ? "bad" : "idle"].push({ ...need, task });
    }
    groups.idle.sort((a, b) => compare(a.since, b.since));
    groups.bad.sort((a, b) => compare(b.since, a.since));
    this.waiting = { idle: isIdleThere ? 0 : groups.idle.length, bad: isBadThere ? 0 : groups.bad.length };
    for (const each of [...(isIdleThere ? groups.idle : []), ...(isBadThere ? groups.bad : [])]) found.set(each.task.id, each);
    return found;
  }

  /** Draw what comes together at once; a page that opens waits a moment, for what `boot.js` has asked for. */
  drawSoon() {
    if (this.drawing) return;
    if (!this.hasDrawn && this.late.size) {
      this.drawTimer ||= setTimeout(() => this.draw(), OPENING);
      return;
    }
    this.drawing = true;
    const draw = () => this.drawing && this.draw();
    if (document.hidden) setTimeout(draw);
    else requestAnimationFrame(draw);
  }

  draw() {
    this.hasDrawn = true;
    this.drawing = false;
    clearTimeout(this.drawTimer);
    this.drawTimer = 0;
    if (this.view.signal.aborted) return;
    const needing = this.needing();
    const ids = this.needs.update([...needing.keys()], this.isHeld("needs", "running", "ended"));
    if (!this.isHeld("needs")) this.done.clear();
    if (this.loaded) {
      const bad = [...needing.values()].filter(({ kind }) => BAD.has(kind)).length;
      attention.set(needing.size + this.further(needing).known, bad, this.totals);
    }
    this.rows = this.isHeld("needs", "running", "ended") ? new Map([...(this.rows || []), ...needing]) : needing;
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
    const others = new Set([...this.more, ...this.unread]);
    const isMore = others.delete(IDLE) && this.totals;
    const idle = isMore ? [...needing.values()].filter(({ kind, task }) => kind === "idle" && task.workspace_agent_health?.healthy).length : 0;
    const known = isMore ? Math.max(0, IDLE.most(this.totals) - idle) : 0;
    return { known, others: [...others].some(({ section }) => section === "needs") };
  }

  /**
   * @param {Map<string, any>} needing
   * @param {string[]} ids
   */
  template(needing, ids) {
    const further = this.further(needing);
    const total = needing.size + further.known;
    const needs = `${count(total)}${further.others ? "+" : ""}`;
    const oldest = [...needing.values()].map((each) => each.since).filter(Boolean).sort()[0];
    const { running, ended } = this.lists();
    const late = this.room(ids.length, running.length, ended.length);
    const isUnknown = late.asks + late.needs > 0 || [...this.unread].some(({ section }) => section === "needs");
    const heading = total ? `${needs} ${needs === "1" ? "needs" : "need"} you` : isUnknown ? "Needs you" : "Nothing needs you";
    const address = (/** @type {string} */ q) => `/tasks?q=${this.scopeTerm(q)}`;
    const shared = { address, owners: this.scope === "everyone" };
    const scope = (/** @type {Scope} */ value, /** @type {string} */ label) => html`<label>
      <input type="radio" name="scope" .checked=${this.scope === value} @change=${() => this.setScope(value)}><span>${label}</span></label>`;
    return html`
      <section class="needs" aria-labelledby="needs">
        <div class="head">
          <h1 id="needs">${heading}</h1>
          ${oldest ? html`<span class="faint">oldest <time-ago at=${oldest} form="age"></time-ago></span>` : late.asks + late.needs ? html`<span class="faint">reading…</span>` : nothing}
          ${this.needs.heldBack ? html`<span class="faint" role="status">${count(this.needs.heldBack)} more when you leave this list</span>` : nothing}
          ${this.totals?.attention.failed ? html`<a class="link small" href=${address("failed:true changed:<1d")}>Failed today</a>` : nothing}
          <fieldset class="segments right"><legend class="unseen">Whose tasks</legend>${scope("mine", "Mine")}${scope("everyone", "Everyone’s")}</fieldset>
          <button class="source-button" title="Commands and raw JSON" aria-label="Commands and raw JSON: what agents ask" @click=${() => this.showSource()}>{ }</button>
        </div>
        ${this.failed ? html`<p class="notice bad" role="alert">${api.explain(this.failed)}</p>`
          : this.unread.size ? html`<p class="notice" role="status">Some lists could not be read. Trying again…</p>` : nothing}
        ${ids.length || late.asks + late.needs ? html`<ul class="card rows" aria-busy=${late.asks + late.needs ? "true" : "false"}>
          ${repeat(ids.slice(0, NEEDS_SHOWN), (/** @type {string} */ id) => id, (/** @type {string} */ id) => this.need(id, needing.has(id)))}${rowsToCome(late.asks, "need tall", ids.length)}${rowsToCome(late.needs, "need", ids.length + late.asks)}</ul>` : isUnknown ? nothing : this.calm(running.length)}
        ${total > NEEDS_SHOWN ? html`<p class="more"><a class="link" href=${address(this.restTerms(needing, ids))}>${count(total - NEEDS_SHOWN)}${further.others ? "+" : ""} more</a></p>` : nothing}
      </section>
      ${this.totals && this.totals.total ? totalsStrip(this.totals, address) : nothing}
      ${running.length || late.running ? taskList("running", "Running", running, late.running, shared, "status:active state:working") : nothing}
      ${ended.length || late.ended ? taskList("ended", "Ended lately", ended, late.ended, shared, ENDED, "&sort=changed") : nothing}`;
  }

  /**
   * The search terms of what needs a person and is not shown, by the first of these.
   * @param {Map<string, any>} needing
   * @param {string[]} ids
   */
  restTerms(needing, ids) {
    const kind = needing.get(ids[NEEDS_SHOWN] || "")?.kind || "idle";
    return kind === "request" || kind === "waiting" ? "waiting:true" : BAD.has(kind) ? "failed:true changed:<1d" : IDLE.q;
  }

  /** @type {(needs: number, running: number, ended: number) => Record<string, number>} rows to keep free below those */
  room(needs, running, ended) {
    const rows = room(this.late, this.totals, this.waiting);
    const free = (/** @type {number} */ wanted, /** @type {number} */ shown) => Math.min(wanted, Math.max(0, PER_LIST - shown));
    const asks = free(rows.asks, needs);
    return { asks, needs: free(rows.needs, needs + asks), running: free(rows.running, running), ended: free(rows.ended, ended) };
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
    if (!areHeld.running) this.listed.clear();
    for (const row of [...running, ...ended]) this.listed.set(row.task.id, row);
    const steady = (/** @type {SteadyList} */ list, /** @type {import("./home-rows.js").Listed[]} */ rows, /** @type {boolean} */ held) =>
      list.update(rows.slice(0, PER_LIST).map(({ task }) => task.id), held).flatMap((id) => this.listed.get(id) || []);
    return { running: steady(this.running, running, areHeld.running), ended: steady(this.ended, ended, areHeld.ended) };
  }

  /**
   * Whether somebody uses one of these sections. What is above it must not grow either, or would push it down.
   * @param {import("./home-lists.js").Section[]} sections
   */
  isHeld(...sections) {
    return sections.some((each) => inUse(this.view.root.querySelector(`section[aria-labelledby=${each}]`)));
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
    if (row.kind === "request") return this.requestRow?.(this, row.request, became);
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
      router.announce(said);
    } else if (!answer.aborted) {
      const { toast } = await import("../dialog.js"); // loaded since the first rows were shown
      toast(api.explain(answer), { bad: true });
    }
    this.draw();
  }

  async showSource() {
    const { quote, showSource } = await import("../task/commands.js");
    const query = this.terms && ` --query ${quote(this.terms)}`;
    showSource({ title: "What agents ask", path: pathOf(ASKED, this.terms), cli: [`requests${query}`] });
  }

  /** Go to the answers of the row with the focus, or of the first that asks something. */
  answer() {
    const row = document.activeElement?.closest(".need.ask:not(.over)") || this.view.root.querySelector(".need.ask:not(.over)");
    /** @type {HTMLElement | null | undefined} */ (row?.querySelector(".reply textarea, .acts button"))?.focus();
  }

  /** @param {number} by */
  move(by) {
    const rows = /** @type {HTMLElement[]} */ ([...this.view.root.querySelectorAll(".need[data-id]")]);
    const at = rows.findIndex((each) => each.contains(document.activeElement));
    rows[Math.min(rows.length - 1, Math.max(0, at + by))]?.focus();
  }
}
