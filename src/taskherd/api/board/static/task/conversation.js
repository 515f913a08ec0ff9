// @ts-check
// The conversation as it happens: takes the log's entries from the page's stream, stays at its end while that is on the screen, and reads
// older entries when somebody scrolls up.
import * as api from "../api.js";
import { plural } from "../format.js";
import { html, nothing, render } from "../vendor/lit-html/lit-html.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";
import { entryView } from "./entry.js";
import { Log, MAX_KEPT } from "./log.js";

export const PAGE = 100; // entries that are read at once
const QUIET_FOR = 1_000; // milliseconds after older entries were shown
const NEAR = 160; // pixels from the end of the page within which it is followed

export class Conversation {
  /**
   * @param {HTMLElement} root
   * @param {{path: () => string, signal: AbortSignal, onRead: () => void}} options `path` of the task; `onRead` is called when entries were shown
   */
  constructor(root, { path, signal, onRead }) {
    this.root = root;
    this.path = path;
    this.signal = signal;
    this.onRead = onRead;
    this.log = new Log();
    this.agent = "Agent";
    this.read = false;
    this.loading = false;
    /** @type {{says: string, retry: () => void} | null} why entries could not be read */
    this.problem = null;
    /** @type {Arrived | null} what has arrived while the newest entries are being read */
    this.arrived = null;
    this.quiet = true;
    this.quietTimer = 0;
    /** @type {Set<number>} */
    this.opened = new Set();
    /** @type {Set<number>} */
    this.closed = new Set();
    /** @type {any} what stands where the conversation stopped */
    this.tail = nothing;
    this.observer = new IntersectionObserver((seen) => seen.some((each) => each.isIntersecting) && this.readOlder(), { rootMargin: "400px" });
    signal.addEventListener("abort", () => {
      this.observer.disconnect();
      clearTimeout(this.quietTimer);
    }, { once: true });
  }

  start() {
    this.render();
  }

  /**
   * @param {{message: string, detail: string}} failed
   * @param {() => void} retry
   */
  fail(failed, retry) {
    this.problem = { says: api.explain(failed), retry };
    this.render();
  }

  /** @param {{logs: import("./log.js").Entry[], truncated: boolean}} event */
  receive({ logs, truncated }) {
    const following = this.atEnd();
    this.arrived?.add(logs, truncated);
    if (!this.read) {
      this.log.reset(logs, truncated);
      this.read = true;
      this.keepQuiet();
    } else if (truncated && following) {
      this.toEnd();
      return;
    } else {
      this.log.apply(logs, following, truncated); // who reads further up stays there
    }
    this.render(following);
    this.onRead();
  }

  /** Whether the end of the conversation is on the screen, so that what is added is to be shown. */
  atEnd() {
    return !this.log.newer && innerHeight + scrollY >= document.documentElement.scrollHeight - NEAR;
  }

  scrollToEnd() {
    scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });
  }

  async readOlder() {
    if (this.loading || !this.log.older || !this.read) return;
    this.loading = true;
    const { lowest } = this.log;
    const page = await api.get(`${this.path()}/logs?before=${lowest}&limit=${PAGE}`, { signal: this.signal, cached: false });
    this.loading = false;
    if (this.signal.aborted || this.log.lowest !== lowest) return; // what is shown has changed meanwhile: it would leave a gap
    if (!page.ok) return this.fail(page, () => this.readOlder());
    this.problem = null;
    const first = this.root.querySelector(".log .entry");
    const top = first?.getBoundingClientRect().top ?? 0;
    this.log.prepend(page.value.logs);
    this.keepQuiet();
    this.render();
    const moved = (first?.getBoundingClientRect().top ?? 0) - top; // nothing moves under the pointer, also where as many are dropped at the end
    if (moved) scrollBy({ top: moved, behavior: "instant" });
  }

  /** Show the newest entries, after those in between were left out. */
  async toEnd() {
    if (this.arrived) return; // it is being read
    const arrived = (this.arrived = new Arrived());
    const page = await api.get(`${this.path()}/logs?limit=${PAGE}`, { signal: this.signal, cached: false });
    this.arrived = null;
    if (this.signal.aborted) return;
    if (!page.ok) return this.fail(page, () => this.toEnd());
    this.problem = null;
    const { logs } = page.value;
    this.log.reset(logs, logs.length > 0 && this.idsOf(logs) > 0);
    this.log.apply(arrived.logs, true); // which the page may be too old for
    this.keepQuiet();
    this.render();
    this.scrollToEnd();
    if (arrived.truncated) this.toEnd();
  }

  /** Have screen readers not tell the entries that are shown next: they were said before. */
  keepQuiet() {
    this.quiet = true;
    clearTimeout(this.quietTimer);
    this.quietTimer = setTimeout(() => {
      this.quiet = false;
      this.render();
    }, QUIET_FOR);
  }

  /** @param {import("./log.js").Entry[]} logs */
  idsOf(logs) {
    return Math.min(...logs.map((each) => each.id));
  }

  /** Fold everything, or unfold all tool calls that are kept. */
  toggleAll() {
    const foldable = this.log.entries.filter((each) => each.kind === "tool_call" || each.kind === "thought");
    if (foldable.some((each) => !this.opened.has(each.id))) for (const each of foldable) this.opened.add(each.id);
    else this.opened.clear();
    this.render();
  }

  /**
   * @param {any} tail
   * @param {string} agent how the agent is called
   */
  setTail(tail, agent) {
    const following = this.read && this.atEnd();
    this.tail = tail;
    this.agent = agent;
    this.render(following);
  }

  render(following = false) {
    const { entries, older, newer } = this.log;
    const plans = entries.filter((each) => each.kind === "plan");
    const folds = {
      opened: this.opened,
      closed: this.closed,
      agent: this.agent,
      isLast: (/** @type {import("./log.js").Entry} */ entry) => entry === plans.at(-1),
      toggle: (/** @type {number} */ id, /** @type {boolean} */ open) => {
        const [is, was] = open ? [this.opened, this.closed] : [this.closed, this.opened];
        is.add(id);
        was.delete(id);
        this.render();
      },
    };
    render(html`
      ${older ? html`<p class="log-more"><button class="button small" @click=${() => this.readOlder()}>Earlier entries</button></p>` : nothing}
      ${this.problem ? html`<p class="notice bad" role="alert">${this.problem.says} <button class="link" @click=${this.problem.retry}>Try again</button></p>` : nothing}
      ${!this.read && !this.problem ? html`<div class="loading"></div>` : nothing}
      <div class="log" role="log" aria-label="What was said" aria-live=${this.quiet ? "off" : "polite"} aria-relevant="additions">${repeat(entries, (/** @type {import("./log.js").Entry} */ each) => each.id, (/** @type {import("./log.js").Entry} */ each, /** @type {number} */ index) => html`<div class="entry">${entryView(each, entries[index - 1], folds)}</div>`)}</div>
      ${this.read && !entries.length ? html`<p class="soft log-empty">Nothing has been said yet.</p>` : nothing}
      ${newer ? html`<p class="log-more newer"><button class="pill" @click=${() => this.toEnd()}>${plural(newer, "newer entry", "newer entries")} · go to the end</button></p>` : nothing}
      ${this.tail}`, this.root);
    const more = this.root.querySelector(".log-more:not(.newer)");
    this.observer.disconnect();
    if (more && !this.problem) this.observer.observe(more); // which reports at once that it is on the screen
    if (following) this.scrollToEnd();
  }
}

/** What arrives while the newest entries are being read. */
class Arrived {
  constructor() {
    /** @type {import("./log.js").Entry[]} */
    this.logs = [];
    this.truncated = false;
  }

  /**
   * @param {import("./log.js").Entry[]} logs
   * @param {boolean} truncated whether some were left out, so that the newest are to be read again
   */
  add(logs, truncated) {
    this.truncated ||= truncated;
    this.logs = [...this.logs, ...logs].slice(-MAX_KEPT);
  }
}
