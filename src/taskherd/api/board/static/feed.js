// @ts-check
// The changes of tasks as they happen: one resumable stream of server-sent events, read with fetch because an
// EventSource cannot send a token in a header. It resumes by position, so nothing is missed and nothing is read twice.
import * as api from "./api.js";
import * as session from "./session.js";

const MERGE_FOR = 250; // milliseconds over which changes are collected
const PAUSE_AFTER = 10_000; // milliseconds in a hidden tab after which the stream is closed
const SILENT_FOR = 40_000; // milliseconds without a byte after which the stream is opened anew; comments come every 15 s
const FIRST_DELAY = 300;
const MAX_DELAY = 10_000; // milliseconds between two attempts
const OFFLINE_AFTER = 1_500; // milliseconds a feed may be away before the banner comes
const GIVE_UP = new Set([400, 403, 404]);

/**
 * What became of one task since the last call; several changes of one task are one, with the last document.
 * @typedef {{kind: "snapshot" | "created" | "updated" | "deleted", task: any, version: number, fields: Set<string>}} TaskChange
 */

/** @typedef {"connecting" | "live" | "offline" | "paused" | "ended"} FeedState */

/**
 * @typedef {object} FeedOptions
 * @property {() => string} [path] of the stream, for each connection anew: `/tasks/watch`, or `/tasks/{user}/{task}/watch`
 * @property {string} [query] search terms of the tasks to follow
 * @property {string} [position] of what was read: the changes after it are told, and `onLive` says only that changes were missed
 * @property {boolean} [snapshot] whether the current documents come first (kind `snapshot`); otherwise only what changes
 *   from now on, and `onLive` says from when on
 * @property {(changes: Map<string, TaskChange>) => void} onChanges changes by task id, at most every 250 ms; a change
 *   may be older than what was read in `onLive`: compare `updated_at`
 * @property {(again: boolean) => void} [onLive] the stream stands; what is read now is at least as new as the stream.
 *   `again`: changes were missed for good (a reset), so everything is to be read again
 * @property {(state: FeedState) => void} [onState]
 * @property {(failed: {status: number, message: string}) => void} [onRefused] the API refused the stream
 * @property {(event: string, data: any) => void} [onOther] an event of another kind
 * @property {AbortSignal} signal ends the feed
 */

/**
 * Follow changes until the signal aborts.
 * @param {FeedOptions} options
 */
export function follow(options) {
  new Feed(options).start();
}

class Feed {
  /** @param {FeedOptions} options */
  constructor(options) {
    this.options = options;
    this.position = options.position || "";
    this.told = this.position !== "";
    this.missed = false;
    this.delay = FIRST_DELAY;
    /** @type {FeedState} */
    this.state = "connecting";
    /** @type {Map<string, TaskChange>} */
    this.changes = new Map();
    this.flushTimer = 0;
    this.hideTimer = 0;
    this.silenceTimer = 0;
    this.wake = () => {};
    this.connection = new AbortController();
  }

  start() {
    const { signal } = this.options;
    const onVisibility = () => this.onVisibility();
    const onOnline = () => document.hidden || this.retryNow(); // a hidden one goes on when somebody looks
    document.addEventListener("visibilitychange", onVisibility);
    addEventListener("online", onOnline);
    addEventListener("pagehide", () => this.pause(), { signal }); // or a page kept for going back holds a connection
    addEventListener("pageshow", ({ persisted }) => persisted && this.onVisibility(), { signal });
    signal.addEventListener("abort", () => {
      document.removeEventListener("visibilitychange", onVisibility);
      removeEventListener("online", onOnline);
      for (const timer of [this.flushTimer, this.hideTimer, this.silenceTimer]) clearTimeout(timer);
      this.connection.abort();
      this.wake();
    }, { once: true });
    if (document.hidden) this.onVisibility(); // as a tab that was opened in the background
    this.run();
  }

  async run() {
    const { signal } = this.options;
    while (!signal.aborted && this.state !== "ended" && session.token()) {
      if (!this.is("paused")) await this.connect();
      if (signal.aborted || this.is("ended")) return;
      if (!this.is("paused")) this.set("offline");
      await new Promise((done) => {
        this.wake = () => done(undefined);
        if (!this.is("paused")) setTimeout(done, this.delay * (0.5 + Math.random() / 2));
      });
      this.delay = Math.min(this.delay * 2, MAX_DELAY);
    }
  }

  /** @param {FeedState} state */
  is(state) {
    return this.state === state;
  }

  /** @param {FeedState} state */
  set(state) {
    if (this.state === state) return;
    this.state = state;
    this.options.onState?.(state);
  }

  onVisibility() {
    clearTimeout(this.hideTimer);
    if (!document.hidden) return this.retryNow();
    this.hideTimer = setTimeout(() => this.pause(), PAUSE_AFTER);
  }

  pause() {
    this.set("paused");
    this.connection.abort();
  }

  retryNow() {
    if (this.is("paused")) this.set("connecting");
    this.delay = FIRST_DELAY;
    this.wake();
  }

  async connect() {
    const { query = "", snapshot = false, onRefused } = this.options;
    const path = this.options.path?.() ?? "/tasks/watch";
    const parameters = new URLSearchParams({ include: "state_since" });
    if (query) parameters.set("q", query);
    if (!snapshot && path === "/tasks/watch") parameters.set("snapshot", "false");
    this.connection = new AbortController();
    this.listenForSilence();
    const opened = await api.open(`${path}${path.includes("?") ? "&" : "?"}${parameters}`, {
      signal: this.connection.signal,
      headers: this.position ? { "Last-Event-ID": this.position } : {},
    });
    if (!opened.ok) {
      if (GIVE_UP.has(opened.status)) {
        this.set("ended");
        onRefused?.(opened);
      }
      return;
    }
    try {
      this.connection.signal.throwIfAborted(); // the page was left while the stream opened
      this.set("live");
      await api.readEvents(opened.value, {
        event: (name, data) => this.handle(name, data),
        id: (position) => this.setPosition(position),
        bytes: () => this.listenForSilence(),
      });
    } catch {
      // the connection broke; the next one resumes
    }
    clearTimeout(this.silenceTimer);
  }

  listenForSilence() {
    clearTimeout(this.silenceTimer);
    this.silenceTimer = setTimeout(() => this.connection.abort(), SILENT_FOR);
  }

  /** @param {string} position */
  setPosition(position) {
    this.position = position;
    this.delay = FIRST_DELAY;
    if (this.told) return;
    this.told = true;
    const again = this.missed;
    this.missed = false;
    clearTimeout(this.flushTimer);
    try {
      this.flush(); // the snapshot comes before the first position
    } finally {
      this.options.onLive?.(again);
    }
  }

  /**
   * @param {string} event
   * @param {string} data
   */
  handle(event, data) {
    if (event === "reset") { // a position follows; what is read after that is new enough
      this.missed = true;
      this.told = false;
      return;
    }
    if (event === "resume") return;
    const parsed = data ? JSON.parse(data) : null;
    if (event === "task.snapshot") return this.add("snapshot", parsed, 0, []);
    const kind = /^task\.(created|updated|deleted)$/.exec(event)?.[1];
    if (!kind) return this.options.onOther?.(event, parsed);
    this.add(/** @type {TaskChange["kind"]} */ (kind), parsed.data.task, parsed.data.version, parsed.data.changes);
  }

  /**
   * @param {TaskChange["kind"]} kind
   * @param {any} task
   * @param {number} version
   * @param {Iterable<string>} fields
   */
  add(kind, task, version, fields) {
    const earlier = this.changes.get(task.id);
    if (earlier && earlier.version > version) return;
    const stillNew = earlier && (earlier.kind === "created" || earlier.kind === "snapshot") && kind === "updated";
    const all = new Set([...(earlier?.fields || []), ...(fields || [])]);
    this.changes.set(task.id, { kind: stillNew ? earlier.kind : kind, task, version, fields: all });
    if (!this.flushTimer) this.flushTimer = setTimeout(() => this.flush(), MERGE_FOR);
  }

  flush() {
    this.flushTimer = 0;
    const { changes } = this;
    this.changes = new Map();
    if (changes.size && !this.options.signal.aborted) this.options.onChanges(changes);
  }
}

let offlineTimer = 0;

/**
 * The `onState` of a page's feed: the banner comes when a feed stays away, and goes by itself.
 * @param {FeedState} state
 */
export function showFeedState(state) {
  clearTimeout(offlineTimer);
  const banner = document.getElementById("offline");
  if (!banner) return;
  if (state === "offline") offlineTimer = setTimeout(() => (banner.hidden = false), OFFLINE_AFTER);
  else if (state === "live" || state === "ended") banner.hidden = true;
}
