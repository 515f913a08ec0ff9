// @ts-check
// How a task shows: one word, one of seven colours, one line that says what it does now, and since when.
import { html, nothing } from "./vendor/lit-html/lit-html.js";
import "./format.js";

/** @typedef {"working" | "waiting" | "idle" | "done" | "failed" | "lost" | "paused"} Color */

/**
 * @typedef {object} Shown
 * @property {string} word
 * @property {Color} color amber (`waiting`) is for what waits for a person to answer, and for nothing else
 * @property {boolean} live whether something happens, or waits for a person, right now
 * @property {string} says what it does now, in one line
 * @property {string} since RFC 3339: since when the word is true; "" if nobody knows
 */

const LOST = "agent has lost connection";
export const NOT_RUNNING = "agent is not running";
/** @type {Map<string, [string, string]>} the word, and what it says */
const WORKSPACE = new Map([
  ["stopping", ["pausing", "Its agent is being stopped"]],
  ["deleting", ["deleting", "Its workspace is being deleted"]],
  ["canceling", ["canceling", "Its build is being canceled"]],
]);

/**
 * Say how a task shows. Without its `state_since`, the time of its last report or change stands for that.
 * @param {any} task a task document
 * @param {string} [runner] the name of its machine, where that is known
 * @returns {Shown}
 */
export function describe(task, runner = "") {
  const { status, current_state: state, workspace_agent_health: health, agent_exit: exit, state_since: since } = task;
  const message = firstLine(state?.message);
  if (task.requests_open) {
    const [first] = task.requests || [];
    const more = task.requests_open > 1 ? ` (and ${task.requests_open - 1} more)` : "";
    return shown("waiting", "waiting", true, `${first?.title || "The agent asks something."}${more}`, first?.since);
  }
  if (isLost(task)) {
    const how = exit ? exitSays(exit, runner) : `${machine(runner)} is silent. ${message && `Last: ${message}`}`.trim();
    return shown("lost", "lost", false, how, since || exit?.at || task.updated_at);
  }
  if (isFailed(task)) return shown("failed", "failed", false, failure(task), since || exit?.at || state?.timestamp || task.updated_at);
  const workspace = WORKSPACE.get(task.workspace_status);
  if (workspace && status !== "active") return shown(workspace[0], "paused", true, workspace[1], since || task.updated_at);
  if (status === "unknown" && task.workspace_status === "pending") { // a stop that no runner has taken up yet
    return shown("pausing", "paused", true, "Its agent is to be stopped", since || task.updated_at);
  }
  if (status === "paused") return shown("paused", "paused", false, message || "Paused. Resume it to go on.", since || task.updated_at);
  if (status === "pending") return shown("queued", "paused", false, "No runner has taken it up yet", since || task.updated_at);
  if (status === "initializing") return shown("starting", "paused", true, message || "Its workspace starts", since || state?.timestamp || task.updated_at);
  if (status === "unknown") return shown("unknown", "paused", false, message || "Nobody has reported its state", since || task.updated_at);
  if (state?.state === "complete") return shown("complete", "done", false, message || "Done", since || state.timestamp);
  if (exit && !state) return shown("ended", "idle", false, exitSays(exit), exit.at);
  if (task.interrupt) return shown("interrupting", "working", true, message || "It is being interrupted", task.interrupt.since);
  if (task.stalled_since) {
    const last = message ? `, last: ${message}` : "";
    return shown("stalled", "lost", false, `Nothing but heartbeats${last}`, task.stalled_since);
  }
  if (state?.state === "working") return shown("working", "working", true, message || "Working", since || state.timestamp);
  if (state?.state === "idle") {
    return shown("idle", "idle", false, message || "It waits for your next message", since || state.timestamp);
  }
  const waits = health && !health.healthy ? sentence(health.reason) : "Its agent has not said anything yet";
  return shown("active", "idle", false, waits, since || task.updated_at);
}

/**
 * @param {string} word
 * @param {Color} color
 * @param {boolean} live
 * @param {string} says
 * @param {string | undefined} since
 * @returns {Shown}
 */
function shown(word, color, live, says, since) {
  return { word, color, live, says, since: since || "" };
}

/** @param {string} runner */
function machine(runner) {
  return runner ? `Its machine, ${runner},` : "Its machine";
}

/** @param {any} task */
export function isLost(task) {
  if (task.status === "paused" || task.status === "pending" || task.current_state?.state === "complete") return false;
  return isSilent(task);
}

/**
 * Return whether its machine is silent, which may come back, or was stopped with it.
 * @param {any} task
 */
export function isSilent({ agent_exit: exit, workspace_agent_health: health }) {
  return exit ? exit.why === "lost" : health?.reason === LOST;
}

/** @param {any} task */
export function isFailed(task) {
  if (task.workspace_status === "canceling") return false;
  if (task.status === "paused" || task.status === "pending" || isLost(task)) return false;
  return task.status === "error" || task.current_state?.state === "failed"
    || (task.workspace_agent_health?.reason === NOT_RUNNING && task.agent_exit?.why !== "lost" && hasFailed(task.agent_exit));
}

/** A build has begun or is to begin, so that nothing else can be asked of the workspace. */
const BUILDING = new Set(["pending", "starting", "stopping", "deleting", "canceling"]);

/**
 * Return whether a build is under way: a pause and a resume are refused until it has ended.
 * @param {any} task
 */
export function isBuilding(task) {
  return BUILDING.has(task.workspace_status);
}

/**
 * Return whether its agent is known not to run any more, or is lost.
 * @param {any} task
 */
export function isAgentGone({ agent_exit: exit, workspace_agent_health: health }) {
  return Boolean(exit) || health?.reason === LOST || health?.reason === NOT_RUNNING;
}

/**
 * Return whether the API accepts a pause: the workspace is up, whatever its agent does.
 * @param {any} task
 */
export function canPause(task) {
  return task.workspace_status === "running";
}

/**
 * Return whether the API accepts a resume: no agent runs any more, so that a resume starts one.
 * @param {any} task
 */
export function canResume(task) {
  return !isBuilding(task) && (task.workspace_status !== "running" || isAgentGone(task));
}

/** @param {any} exit */
function hasFailed(exit) {
  if (!exit) return false;
  return exit.why === "exited" ? exit.status !== 0 : exit.why !== "stopped" && exit.why !== "interrupted";
}

/** @param {any} task */
function failure(task) {
  const message = firstLine(task.current_state?.message);
  if (task.workspace_status === "canceled") return "Its build was canceled";
  if (task.agent_exit) return exitSays(task.agent_exit);
  return message || sentence(task.workspace_agent_health?.reason || "") || "Its build failed";
}

/**
 * @param {any} exit
 * @param {string} [runner] the name of its machine, where that is known
 */
export function exitSays(exit, runner = "") {
  const words = lastLine(exit.words);
  const how = (Object.hasOwn(EXITS, exit.why) && EXITS[exit.why](exit, runner)) || `The agent ended: ${exit.why}`;
  return words ? `${how}: ${words}` : how;
}

/** @type {Record<string, (exit: any, runner: string) => string>} */
const EXITS = {
  exited: (exit) => (exit.status ? `Exited with status ${exit.status}` : "Exited"),
  signalled: (exit) => `Killed by signal ${exit.signal}`,
  out_of_memory: () => "Ran out of memory",
  timeout: () => "Reached its time limit",
  lost: (_exit, runner) => `Its machine${runner ? ` ${runner}` : ""}, container or shim was stopped`,
  stopped: () => "Stopped",
  interrupted: () => "Interrupted",
  not_started: () => "Could not be started",
};

/** @param {string | undefined} text */
export function firstLine(text) {
  return (text || "").trim().split("\n", 1)[0];
}

/** @param {string | undefined} text */
function lastLine(text) {
  return (text || "").trim().split("\n").pop() || "";
}

/** @param {string} text */
function sentence(text) {
  return text && text[0].toUpperCase() + text.slice(1);
}

/**
 * The name under which people know a task.
 * @param {any} task
 */
export function title(task) {
  return task.display_name || task.name;
}

/**
 * The dot, the word and its age.
 * @param {Shown} state
 */
export function badge({ word, color, live, since }) {
  return html`<span class="state ${color}"><i class=${live ? "dot live" : "dot"}></i>${word}${since
    ? html` <time-ago class="age" at=${since} form="age"></time-ago>` : nothing}</span>`;
}

/**
 * The dot alone, beside a text that says the state.
 * @param {Shown} state
 */
export function dot({ color, live }) {
  return html`<i class="dot ${color} ${live ? "live" : ""}"></i>`;
}

/**
 * Draw a part of a page, or what stands in its place if that fails: one that cannot be drawn costs only itself.
 * @param {() => any} draw
 * @param {() => any} instead
 */
export function guarded(draw, instead) {
  try {
    return draw();
  } catch (error) {
    console.error(error);
    return instead();
  }
}

/**
 * Text in which `code` between backticks is set as code; everything else stays text.
 * @param {string} text
 */
export function prose(text) {
  return text.split(/(`[^`\n]+`)/).map((part, index) => (index % 2 ? html`<code>${part.slice(1, -1)}</code>` : part));
}
