// @ts-check
// Deleted tasks in pages, last deleted first, and who deleted each; a task stays here until its contents are erased. What is
// deleted meanwhile is counted until somebody wants to see it, so that rows never jump.
import * as api from "../api.js";
import { follow, showFeedState } from "../feed.js";
import { count, plural } from "../format.js";
import { bind } from "../keys.js";
import { hasTerm, parse } from "../query.js";
import * as router from "../router.js";
import { quote, showSource, sourceButton } from "../task/commands.js";
import { html, nothing, render } from "../vendor/lit-html/lit-html.js";

const PAGE = 50;
const MAX_EMPTY = 10; // pages without a row that are passed over: one looks at so many tasks of everybody, and no more

/** @type {import("../router.js").Page} */
export default function deleted(view) {
  new Deleted(view).start();
}

class Deleted {
  /** @param {import("../router.js").View} view */
  constructor(view) {
    this.view = view;
    this.q = view.query.get("q") || "";
    this.after = view.query.get("after") || "";
    /** @type {any} the page of the list, null until it is there */
    this.page = null;
    this.loads = 0; // so far: only the answer of the last one counts
    this.failed = "";
    /** @type {Set<string>} ids of tasks that were deleted since */
    this.pending = new Set();
    this.mayHaveChanged = false; // changes were missed
  }

  start() {
    const { signal } = this.view;
    this.view.setTitle("Deleted tasks");
    bind("Deleted tasks", [
      { keys: ".", does: "Show what was deleted since", run: () => this.turn("") },
      { keys: "y", does: "Commands and raw JSON", run: () => showSource(this.source()) },
    ], signal);
    this.draw();
    follow({
      query: this.q,
      signal,
      onState: (state) => {
        showFeedState(state);
        if (state === "offline" && !this.page) this.load(); // what there is, until the stream stands
      },
      onLive: (again) => (again && this.page ? this.missed() : this.load()), // not before: the list would be read twice
      onChanges: (changes) => this.apply(changes),
      onRefused: () => this.load(), // whose own refusal says more
    });
  }

  missed() {
    this.mayHaveChanged = true;
    this.draw();
  }

  get path() {
    return this.pathAfter(this.after);
  }

  /** @param {string} after the cursor of a page, "" for the first */
  pathAfter(after) {
    return `/deleted-tasks?${new URLSearchParams({ limit: String(PAGE), ...(this.q && { q: this.q }), ...(after && { after }) })}`;
  }

  source() {
    const terms = parse(this.q).map(({ key, value }) => ` --${key || "owner"} ${quote(value)}`).join("");
    return { title: "These deleted tasks", path: this.path, cli: [`task deleted${hasTerm("owner", this.q) ? "" : " --all"}${terms}`] };
  }

  async load() {
    const { signal } = this.view;
    const load = (this.loads += 1);
    const counted = [...this.pending];
    let answer = await api.get(this.path, { signal, cached: false });
    for (let passed = 0; passed < MAX_EMPTY && answer.ok && !answer.value.tasks.length && answer.value.next; passed += 1) {
      if (signal.aborted || load !== this.loads) return;
      answer = await api.get(this.pathAfter(answer.value.next), { signal, cached: false });
    }
    if (signal.aborted || load !== this.loads) return;
    this.failed = answer.ok ? "" : api.explain(answer);
    if (answer.ok) {
      this.page = answer.value;
      for (const { id } of this.page.tasks) this.pending.delete(id);
      if (!this.after) {
        for (const id of counted) this.pending.delete(id);
        this.mayHaveChanged = false;
      }
      router.announce(plural(this.page.tasks.length, "deleted task"));
    }
    this.draw();
    this.view.shown();
  }

  /** @param {Map<string, import("../feed.js").TaskChange>} changes */
  apply(changes) {
    const shown = new Set(this.page?.tasks.map((/** @type {any} */ each) => each.id));
    for (const { kind, task } of changes.values()) if (kind === "deleted" && !shown.has(task.id)) this.pending.add(task.id);
    if (this.pending.size && !shown.size && !this.after) this.load(); // there is no row to push down
    else this.draw();
  }

  /** @param {string} after the cursor of the page to show, "" for the first */
  turn(after) {
    const query = new URLSearchParams({ ...(this.q && { q: this.q }), ...(after && { after }) });
    if (after !== this.after) router.setQuery(query, { replace: false });
    this.after = after;
    scrollTo(0, 0);
    this.load();
  }

  draw() {
    if (this.view.signal.aborted) return;
    const since = this.pending.size ? `${count(this.pending.size)} deleted since` : this.mayHaveChanged ? "May have changed" : "";
    render(html`<div class="head"><h1>Deleted tasks</h1>
        <button class="pill" ?hidden=${!since} @click=${() => this.turn("")}><span role="status">${since}</span> · show</button>
        <a class="link small right" href="/tasks">All tasks</a>${sourceButton(this.source())}</div>
      ${this.failed ? html`<p class="notice bad" role="alert">${this.failed}</p>` : this.page ? list(this.page)
        : html`<div class="card rows" aria-busy="true"><div class="loading"></div></div>`}
      ${this.failed ? nothing : this.pages()}`, this.view.root);
  }

  pages() {
    const next = this.page?.next;
    if (!next && !this.after) return nothing;
    return html`<nav class="pages" aria-label="Pages of the list">
      <button class="button" ?disabled=${!this.after} @click=${() => this.turn("")}>First page</button>
      <button class="button" ?disabled=${!next} @click=${() => this.turn(next)}>Next ${PAGE}</button></nav>`;
  }
}

/** @param {{ tasks: any[], next: string | null }} page */
function list({ tasks, next }) {
  if (!tasks.length && next) {
    return html`<div class="card empty"><h2>No deleted tasks among the last ones</h2><p>Others have deleted very many tasks since; the next page looks further back.</p></div>`;
  }
  if (!tasks.length) {
    return html`<div class="card empty"><h2>No deleted tasks</h2><p>A task that is deleted is listed here, with who deleted it, until its contents are erased.</p></div>`;
  }
  return html`<ul class="card lines deleted">${tasks.map((each) => html`<li>
    <span class="name truncate" dir="auto" title=${each.name}>${each.display_name || each.name}</span>
    <span class="says">Deleted by <b>${each.deleted_by || "an unknown person"}</b> <time-ago at=${each.deleted_at}></time-ago></span>
    <span class="where truncate faint">${each.template_display_name || each.template_name}</span>
    <span class="truncate faint" title="Owner">${each.owner_name}</span>
  </li>`)}</ul>`;
}
