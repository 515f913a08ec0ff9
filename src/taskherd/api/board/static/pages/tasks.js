// @ts-check
// Tasks: a table in pages, a filter that the address holds, and what is done to many at once. Rows never jump: what is
// shown changes in place, and what would come or go is counted until somebody wants to see it.
import * as api from "../api.js";
import * as attention from "../attention.js";
import * as bulk from "../bulk.js";
import { FilterField } from "../combobox.js";
import { showDialog, toast } from "../dialog.js";
import { follow, showFeedState } from "../feed.js";
import { count, link, money, plural } from "../format.js";
import { bind } from "../keys.js";
import { hasTerm, liveQuery, matches, meant, sentence } from "../query.js";
import * as router from "../router.js";
import { badge, describe, guarded, prose, title } from "../state.js";
import { quote, showSource, sourceButton } from "../task/commands.js";
import * as views from "../views.js";
import { html, nothing, render } from "../vendor/lit-html/lit-html.js";
import { live } from "../vendor/lit-html/directives/live.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";

const PAGE = 50;
const MAX_JOBS = 3; // jobs of the caller that are shown

/** @type {import("../router.js").Page} */
export default function tasks(view) {
  new Tasks(view).start();
}

class Tasks {
  /** @param {import("../router.js").View} view */
  constructor(view) {
    this.view = view;
    this.q = view.query.get("q") || "";
    this.sort = view.query.get("sort") || "";
    this.after = view.query.get("after") || "";
    /** @type {any[]} */
    this.rows = [];
    this.next = "";
    this.loaded = false;
    this.loads = 0; // so far: only the answer of the last one counts
    /** @type {Map<string, import("../feed.js").TaskChange> | null} what changed while the list is being read */
    this.meanwhile = null;
    /** @type {any} */
    this.failed = null;
    /** @type {Set<string>} ids of tasks that would come or go */
    this.pending = new Set();
    this.mayHaveChanged = false; // a task may have come that does not say whether it belongs here
    this.isFollowed = true; // unless the API refuses the stream
    /** @type {Map<string, string>} why a row should not be here any more, by its id */
    this.gone = new Map();
    /** @type {Set<string>} */
    this.selected = new Set();
    this.all = false; // all that match are selected
    this.interrupts = false;
    /** @type {Map<string, {job: any, refused: bulk.Refused}>} */
    this.jobs = new Map();
    /** @type {any} */
    this.totals = null;
    this.feed = new AbortController();
    /** @type {Promise<void> | undefined} */
    this.jobsRead = undefined;
    this.acting = false; // whether somebody is asked about an action
    this.last = -1; // index of the row that was selected last, for selecting a range
  }

  start() {
    const { signal, root } = this.view;
    signal.addEventListener("abort", () => this.feed.abort());
    this.view.setTitle("Tasks");
    render(html`<h1 class="unseen">Tasks</h1><div class="filter"></div><div class="list"></div>`, root);
    this.list = /** @type {HTMLElement} */ (root.querySelector(".list"));
    const filter = /** @type {HTMLElement} */ (root.querySelector(".filter"));
    this.filter = new FilterField(filter, (typed) => this.setFilter(meant(typed)), () => this.rows);
    this.filter.set(this.q);
    bind("Tasks", [
      { keys: "j", does: "Next task", repeats: true, run: () => this.move(1) },
      { keys: "k", does: "The one before", repeats: true, run: () => this.move(-1) },
      { keys: "x", does: "Select it", run: () => this.toggleFocused() },
      { keys: "a", does: "Select the page", run: () => this.selectPage(!this.isPageSelected()) },
      { keys: ".", does: "Show what changed", run: () => this.load() },
      { keys: "y", does: "Commands and raw JSON", run: () => showSource(this.source()) },
      { keys: "Escape", does: "Select nothing", run: () => this.selectNone() },
    ], signal);
    this.draw();
    this.jobsRead = this.loadJobs();
    this.connect();
  }

  /** @param {string} q */
  setFilter(q, sort = this.sort) {
    this.q = q;
    this.sort = hasTerm("created", q) ? "" : sort; // which no list in the order of changes has
    this.after = "";
    this.selectNone();
    this.filter?.set(q);
    this.putAddress();
    this.loaded = false;
    this.failed = null;
    this.forgetChanges();
    this.connect();
    this.draw();
  }

  forgetChanges() {
    this.pending.clear();
    this.gone.clear();
    this.mayHaveChanged = false;
  }

  putAddress(replace = false) {
    const query = new URLSearchParams();
    if (this.q) query.set("q", this.q);
    if (this.sort) query.set("sort", this.sort);
    if (this.after) query.set("after", this.after);
    router.setQuery(query, { replace });
  }

  connect() {
    this.feed.abort();
    this.feed = new AbortController();
    this.isFollowed = true;
    follow({
      query: liveQuery(this.q),
      signal: this.feed.signal,
      onState: (state) => {
        showFeedState(state);
        if (state === "offline" && !this.loaded) this.load(); // what there is, until the stream stands
        if (state === "live" && this.failed) this.load(this.failed.after);
      },
      onLive: () => this.followed(), // not before: the list would be read twice
      onChanges: (changes) => this.apply(changes),
      onRefused: () => {
        this.isFollowed = false;
        this.load(); // whose own refusal says more
      },
    });
  }

  /** The stream stands: read the list, unless it is there and may only have missed changes. */
  followed() {
    if (!this.loaded || this.failed || this.meanwhile) return this.load();
    this.mayHaveChanged = true;
    this.draw();
  }

  /**
   * Read a page of the list. Until it is there, and if it cannot be read, the rows stay.
   * @param {string} [after] the cursor of the page, "" for the first
   */
  async load(after = this.after) {
    const { signal } = this.feed;
    const load = (this.loads += 1);
    this.meanwhile = new Map();
    const [answer, totals] = await Promise.all([
      api.get(this.path(after), { signal }),
      api.get(`/task-totals${this.q ? `?q=${encodeURIComponent(this.q)}` : ""}`, { signal }),
      this.jobsRead, // whose place is above the rows
    ]);
    if (signal.aborted || load !== this.loads) return;
    const { meanwhile } = this;
    this.meanwhile = null;
    this.totals = totals.ok ? totals.value : null; // 400: not every term is counted by
    this.failed = answer.ok ? null : { ...answer, after };
    if (answer.ok) this.take(answer.value, after);
    else if (!this.loaded) [this.rows, this.next] = [[], ""]; // which were of another filter
    this.loaded = true;
    this.apply(meanwhile); // of which the page may have been read too early
    this.view.shown();
    router.announce(this.failed ? "" : plural(this.rows.length, "task"));
  }

  /** @param {string} after the cursor of a page */
  path(after) {
    return `/tasks?${new URLSearchParams({ limit: String(PAGE), include: "state_since", q: this.q, ...(this.sort && { sort: this.sort }), ...(after && { after }) })}`;
  }

  source() {
    const command = `task list ${this.q ? `--query ${quote(this.q)}` : "--all"}${this.sort ? ` --sort ${quote(this.sort)}` : ""}`;
    return { title: "These tasks", path: this.path(this.after), cli: [command] };
  }

  /**
   * Show a page of the list.
   * @param {any} page
   * @param {string} after
   */
  take({ tasks, next }, after) {
    this.rows = tasks;
    this.next = next || "";
    this.last = -1;
    this.forgetChanges();
    if (!this.all) this.selected = new Set(this.rows.map((each) => each.id).filter((id) => this.selected.has(id)));
    if (after === this.after) return;
    this.after = after;
    this.putAddress();
    scrollTo(0, 0);
  }

  /** @param {Map<string, import("../feed.js").TaskChange>} changes */
  apply(changes) {
    for (const [id, change] of changes) {
      this.meanwhile?.set(id, change);
      this.applyOne(change);
    }
    if (changes.size) attention.changed();
    this.draw();
  }

  /** @param {import("../feed.js").TaskChange} change */
  applyOne({ kind, task, fields }) {
    const at = this.rows.findIndex((each) => each.id === task.id);
    if (at >= 0) {
      if (this.rows[at].updated_at > task.updated_at) return;
      this.rows[at] = task;
      const why = kind === "deleted" ? "deleted" : matches(this.q, task) === false ? "no longer matches" : "";
      this.pending[why ? "add" : "delete"](task.id);
      if (why) this.gone.set(task.id, why);
      else this.gone.delete(task.id);
      return;
    }
    const belongs = kind !== "deleted" && !this.after && this.isOnFirstPage(task) && matches(this.q, task);
    if (belongs) this.pending.add(task.id);
    else this.pending.delete(task.id);
    if (belongs === undefined && (kind === "created" || fields.has("status"))) this.mayHaveChanged = true; // a runner begins with it
  }

  /**
   * Return whether a task that is not shown is on the first page if it matches.
   * @param {any} task
   */
  isOnFirstPage(task) {
    if (!this.next && this.rows.length < PAGE) return true; // with a next one, a page of large documents is shorter
    if (this.sort === "changed-asc") return false;
    return this.isByChange() || task.created_at > this.rows[this.rows.length - 1].created_at;
  }

  isByChange() {
    return this.sort.startsWith("changed") || (!this.sort && hasTerm("changed", this.q));
  }

  // Selection and jobs

  isPageSelected() {
    return this.rows.length > 0 && (this.all || this.rows.every((each) => this.selected.has(each.id)));
  }

  /** Of all that match, go on with those that this page shows as selected. */
  selectShown() {
    if (this.all) this.selected = new Set(this.rows.map((each) => each.id));
    this.all = false;
  }

  /** @param {boolean} on */
  selectPage(on) {
    this.selectShown();
    for (const { id } of this.rows) this.selected[on ? "add" : "delete"](id);
    this.selectionChanged();
  }

  selectNone() {
    this.selected.clear();
    this.all = false;
    this.draw();
  }

  /**
   * @param {string} id
   * @param {boolean} on
   * @param {boolean} range whether all between this one and the one before are meant
   */
  select(id, on, range) {
    const at = this.rows.findIndex((each) => each.id === id);
    const from = range && this.last >= 0 ? this.last : at;
    this.selectShown();
    for (const each of this.rows.slice(Math.min(from, at), Math.max(from, at) + 1)) this.selected[on ? "add" : "delete"](each.id);
    this.last = at;
    this.selectionChanged();
  }

  selectionChanged() {
    const [id] = this.selected;
    if (id && !this.interrupts) bulk.canInterrupt(id).then((can) => ((this.interrupts = can), this.draw()));
    this.draw();
  }

  /** @param {string} action */
  async act(action) {
    if (this.acting) return;
    this.acting = true;
    await this.ask(action).finally(() => (this.acting = false));
  }

  /** @param {string} action */
  async ask(action) {
    const target = this.all ? { q: this.q } : { ids: [...this.selected] };
    const whose = this.all ? "all that match" : plural(this.selected.size, "selected task");
    const job = await bulk.start(action, target, whose, this.view.signal);
    if (!job || this.view.signal.aborted) return;
    this.selectNone();
    this.followJob(job);
  }

  async loadJobs() {
    const answer = await api.get("/task-actions?limit=10", { signal: this.view.signal, cached: false });
    if (!answer.ok) return;
    const told = answer.value.actions.filter((/** @type {any} */ each) => bulk.isTold(each));
    await Promise.all(told.slice(0, MAX_JOBS).map((/** @type {any} */ job) => this.followJob(job)));
  }

  /** @param {any} job */
  async followJob(job) {
    const { signal } = this.view;
    const shown = { job, refused: /** @type {bulk.Refused} */ ({ tasks: [], next: null }) };
    this.jobs.set(job.id, shown);
    if (job.finished_at !== null) return this.readRefused(job.id);
    this.draw();
    bulk.follow(job.id, async (changed) => {
      shown.job = changed;
      if (changed.finished_at !== null) this.readRefused(job.id);
      else this.draw();
    }, signal);
  }

  /** @param {string} id of a job */
  async readRefused(id) {
    const shown = this.jobs.get(id);
    if (!shown) return;
    if (bulk.withError(shown.job)) shown.refused = await bulk.moreRefused(id, shown.refused, this.view.signal);
    this.draw();
  }

  /** @param {string} id */
  async cancelJob(id) {
    const answer = await api.send("POST", `/task-actions/${id}/cancel`);
    if (!answer.ok) toast(api.explain(answer), { bad: true });
  }

  // Keyboard

  /** @returns {HTMLElement[]} */
  get names() {
    return [...(this.list?.querySelectorAll("tbody a.name") || [])].map((each) => /** @type {HTMLElement} */ (each));
  }

  /** @param {number} by */
  move(by) {
    const { names } = this;
    const at = names.findIndex((each) => each.closest("tr")?.contains(document.activeElement));
    names[Math.min(names.length - 1, Math.max(0, at + by))]?.focus();
  }

  toggleFocused() {
    const id = document.activeElement?.closest("tr")?.dataset.id;
    if (id) this.select(id, !(this.all || this.selected.has(id)), false);
  }

  // Views

  async saveView() {
    const content = html`<p>${sentence(this.q)}.</p><label class="field"><span>Name</span><input name="name" type="text" maxlength="40" required autofocus></label>`;
    const actions = [{ label: "Cancel", value: "" }, { label: "Save", value: "yes", main: true }];
    const { value, fields } = await showDialog({ title: "Save this view", content, actions });
    const name = String(fields.get("name")).trim();
    if (value === "yes" && name) views.save({ name, q: this.q, sort: this.sort });
    this.draw();
  }

  // Templates

  draw() {
    if (!this.list || this.view.signal.aborted) return;
    this.list.ariaBusy = String(!this.loaded);
    render(html`
      ${this.viewBar()}
      ${repeat(this.jobs.values(), (/** @type {any} */ each) => each.job.id, (/** @type {any} */ { job, refused }) => bulk.panel(job, refused, {
        cancel: () => this.cancelJob(job.id), more: () => this.readRefused(job.id), dismiss: () => (bulk.dismiss(job.id), this.jobs.delete(job.id), this.draw()),
      }))}
      <div class="list-head">${this.selected.size || this.all ? this.selectionBar() : this.summary()}</div>
      ${this.failed ? this.failure() : nothing}
      ${this.rows.length ? this.table() : this.failed ? nothing : this.loaded ? this.empty() : this.skeleton()}
      ${this.pages()}`, this.list);
  }

  viewBar() {
    const current = (/** @type {views.View} */ view) => view.q === this.q && view.sort === this.sort;
    const all = views.list();
    return html`<nav class="views" aria-label="Views">
      ${repeat(all, (/** @type {views.View} */ { name, saved }) => `${saved ? "saved" : "built in"} ${name}`, (/** @type {views.View} */ each) => html`<span class="view">
        <a href=${views.address(each)} aria-current=${current(each) ? "true" : nothing} @click=${(/** @type {MouseEvent} */ event) => {
          if (event.metaKey || event.ctrlKey || event.shiftKey) return;
          event.preventDefault();
          this.setFilter(each.q, each.sort);
        }}>${each.name}</a>${each.saved ? html`<button class="icon" aria-label="Remove the view ${each.name}" @click=${() => (views.remove(each.name), this.draw())}>×</button>` : nothing}</span>`)}
      ${this.q && !all.some(current) ? html`<button class="link small" @click=${() => this.saveView()}>Save view</button>` : nothing}
      <a class="link small right" href="/deleted">Deleted</a>${sourceButton(this.source())}
    </nav>`;
  }

  summary() {
    const changed = this.pending.size ? `${count(this.pending.size)} changed` : this.mayHaveChanged || !this.isFollowed ? "May have changed" : "";
    return html`<p class="soft small">${this.loaded && !this.failed && this.totals ? html`<b class="count">${count(this.totals.total)}</b> · ` : nothing}${sentence(this.q)}</p>
      <button class="pill right" ?hidden=${!changed} @click=${() => (scrollTo(0, 0), this.load())}><span role="status">${changed}</span> · show</button>
      ${this.order()}`;
  }

  order() {
    const byChange = this.isByChange();
    const choice = (/** @type {string} */ sort, /** @type {string} */ label, /** @type {boolean} */ on, /** @type {boolean} */ off) => html`
      <label><input type="radio" name="order" .checked=${live(on)} ?disabled=${off} @change=${() => this.setFilter(this.q, sort)}><span>${label}</span></label>`;
    return html`<fieldset class="segments order"><legend class="unseen">Order</legend>
      ${choice("", "Newest", !byChange, hasTerm("changed", this.q))}${choice("changed", "Last changed", byChange && this.sort !== "changed-asc", hasTerm("created", this.q))}</fieldset>`;
  }

  selectionBar() {
    const many = this.all ? html`All that match${this.totals ? html` (${count(this.totals.total)})` : nothing}` : html`${plural(this.selected.size, "task")} selected`;
    const offer = !this.all && this.q && this.isPageSelected() && (this.next || this.after);
    return html`<div class="selection"><b role="status">${many}</b>
      ${offer ? html`<button class="link" @click=${() => ((this.all = true), this.draw())}>Select all that match</button>` : nothing}
      <span class="acts right">${Object.entries(bulk.ACTIONS).filter(([action]) => action !== "interrupt" || this.interrupts).map(([action, { label, danger }]) => html`
        <button class=${danger ? "button small danger" : "button small"} @click=${() => this.act(action)}>${label}</button>`)}</span>
      <button class="button small quiet cancel" @click=${() => this.selectNone()}>Cancel</button></div>`;
  }

  failure() {
    return html`<div class="notice bad" role="alert"><p><b>${this.failed.message}</b></p>
      ${this.failed.validations.map((/** @type {any} */ each) => html`<p>${each.detail}</p>`)}
      ${!this.failed.validations.length && this.failed.detail ? html`<p>${this.failed.detail}</p>` : nothing}
      <p class="acts left"><button class="button small" @click=${() => this.load(this.failed.after)}>Try again</button>${this.q ? html`<button class="button small quiet" @click=${() => this.setFilter("")}>Show all tasks</button>` : nothing}</p></div>`;
  }

  skeleton() {
    return html`<div class="card rows" aria-busy="true">${[0, 1, 2, 3, 4].map(() => html`<div class="loading"></div>`)}</div>`;
  }

  empty() {
    if (this.q) {
      return html`<div class="card empty"><h2>No task matches</h2><p>${sentence(this.q)}: there are none right now. They will be counted above as soon as there are.</p>
        ${hasTerm("name", this.q) ? html`<p>Names are searched by how they begin, which is mostly how the prompt begins: try its first words.</p>` : nothing}
        <button class="button" @click=${() => this.setFilter("")}>Show all tasks</button></div>`;
    }
    return html`<div class="card empty"><h2>There are no tasks yet</h2>
      <p>A task is one prompt for one agent in a workspace of its own. Start one here, or with <code>taskherd task create</code>.</p><a class="button go" href="/new">New task</a></div>`;
  }

  table() {
    const hasCost = this.rows.some((each) => each.usage);
    return html`<div class="card table-frame"><table role="table" class="tasks-table ${hasCost ? "has-cost" : ""}" aria-label="Tasks">
      <thead role="rowgroup"><tr role="row">
        <th role="columnheader" scope="col" class="check"><input type="checkbox" aria-label="Select this page" .checked=${live(this.isPageSelected())}
          .indeterminate=${live(this.selected.size > 0 && !this.isPageSelected())} @change=${(/** @type {Event} */ event) => this.selectPage(/** @type {HTMLInputElement} */ (event.target).checked)}></th>
        <th role="columnheader" scope="col">Task</th>
        <th role="columnheader" scope="col">Doing now</th>
        <th role="columnheader" scope="col">State</th>
        <th role="columnheader" scope="col" class="owner">Owner</th>
        <th role="columnheader" scope="col" class="template">Template</th>
        <th role="columnheader" scope="col" class="target">Pull request</th>
        ${hasCost ? html`<th role="columnheader" scope="col" class="cost">Cost</th>` : nothing}
      </tr></thead>
      <tbody role="rowgroup">${repeat(this.rows, (/** @type {any} */ task) => task.id, (/** @type {any} */ task) => guarded(() => this.row(task, hasCost), () => brokenRow(task)))}</tbody>
    </table></div>`;
  }

  /**
   * @param {any} task
   * @param {boolean} hasCost
   */
  row(task, hasCost) {
    const { id } = task;
    const state = describe(task);
    const template = task.template_display_name || task.template_name;
    const target = link(task.current_state?.uri);
    const gone = this.gone.get(id);
    const selected = this.all || this.selected.has(id);
    return html`<tr role="row" data-id=${id} class="${gone ? "gone" : ""} ${selected ? "selected" : ""}">
      <td role="cell" class="check"><input type="checkbox" aria-label="Select ${title(task)}" .checked=${live(selected)}
        @click=${(/** @type {MouseEvent} */ event) => this.select(id, /** @type {HTMLInputElement} */ (event.target).checked, event.shiftKey)}></td>
      <th role="rowheader" scope="row" class="task"><a class="name truncate" dir="auto" href=${api.taskPath(task)} title="${title(task)}&#10;${task.owner_name}/${task.name}">${title(task)}</a><span class="under truncate" dir="auto">${template}</span></th>
      <td role="cell" class="says"><span class="truncate" dir="auto" title=${state.says}>${gone ? html`<i>${gone}</i> · ` : nothing}${prose(state.says)}</span></td>
      <td role="cell" class="stand">${badge(state)}</td>
      <td role="cell" class="owner truncate">${task.owner_name}</td>
      <td role="cell" class="template truncate" dir="auto">${template}</td>
      <td role="cell" class="target truncate">${target ? html`<a class="link" href=${target.href} title=${target.href} rel="noopener noreferrer" target="_blank">${target.text}</a>` : html`<span class="faint" aria-hidden="true">–</span>`}</td>
      ${hasCost ? html`<td role="cell" class="cost">${money(task.usage?.cost) || html`<span class="faint" aria-hidden="true">–</span>`}</td>` : nothing}
    </tr>`;
  }

  pages() {
    if (!this.next && !this.after) return nothing;
    return html`<nav class="pages" aria-label="Pages of the list">
      <button class="button" ?disabled=${!this.after} @click=${() => this.load("")}>First page</button>
      <button class="button" ?disabled=${!this.next} @click=${() => this.load(this.next)}>Next ${PAGE}</button></nav>`;
  }
}

/**
 * A row that could not be drawn as what it is: it leads to its task.
 * @param {any} task
 */
function brokenRow(task) {
  return html`<tr role="row" data-id=${task.id}><td role="cell" class="check"></td><th role="rowheader" scope="row" class="task"><a class="name truncate" dir="auto" href=${api.taskPath(task)}>${title(task)}</a></th>
    <td role="cell" class="says">This row could not be shown.</td></tr>`;
}
