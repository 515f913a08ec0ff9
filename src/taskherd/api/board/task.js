// Shows one task live. The stream is read with fetch, because EventSource cannot send a token in a header.
"use strict";

const TOKEN_KEY = "taskherd-token";
const LOG_INTERVAL = 3000; // milliseconds between two reads of the log
const MAX_RETRY_DELAY = 30000; // milliseconds
const INVALID_TOKEN = "The token is not valid.";
const TIMELINE_PAGE = 500;
const MAX_TIMELINE = 500; // entries on the page; older ones are removed

const $ = (id) => document.getElementById(id);
const [, base, user, task] = location.pathname.match(/^(.*)\/tasks\/([^/]+)\/([^/]+)\/?$/);
const api = `${base}/api/v2/tasks/${user}/${task}`;

let token = sessionStorage.getItem(TOKEN_KEY) || "";
let lastEventId = "";
let lastPosition = 0; // of the timeline
let streamController = null; // aborts the stream
const logElements = new Map(); // by the id of the entry
const actionElements = new Map(); // of the timeline, by the id of the action

class Unauthorized extends Error {}
class NotFound extends Error {}

async function request(path, headers = {}, signal = undefined, method = "GET") {
  const response = await fetch(api + path, {
    method, headers: { "Coder-Session-Token": token, ...headers }, signal, cache: "no-store", credentials: "omit",
  });
  if (response.status === 401) throw new Unauthorized();
  if (response.status === 404) throw new NotFound();
  if (!response.ok) {
    const { message } = await response.json().catch(() => ({}));
    throw new Error(message || `The server answered ${response.status}.`);
  }
  return response;
}

function element(name, content = "", className = "") {
  const created = document.createElement(name);
  created.textContent = content;
  if (className) created.className = className;
  return created;
}

function setText(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

function timeElement(time) {
  const created = element("time", new Date(time).toLocaleString());
  created.dateTime = time;
  return created;
}

function showConnection(text, live = false) {
  setText("connection", text);
  $("connection").classList.toggle("live", live);
}

function showNote(text) {
  setText("note", text);
  $("note").hidden = !text;
}

function showTask(task) {
  $("task").hidden = false;
  const name = task.display_name || task.name;
  document.title = `${task.status}: ${name}`;
  setText("name", name);
  setText("status", task.status);
  $("status").className = `badge ${task.status}`;
  const state = task.current_state;
  setText("summary", state ? `${state.state}${state.message ? `: ${state.message}` : ""}` : "The agent has not reported yet.");
  const health = task.workspace_agent_health;
  const facts = {
    Name: task.name,
    Owner: task.owner_name,
    Template: task.template_display_name || task.template_name,
    Workspace: `${task.workspace_name}, ${task.workspace_status || "unknown"}`,
    Agent: health ? (health.healthy ? "healthy" : health.reason) : "none",
    ...(task.agent_exit && { "Agent ended": new Date(task.agent_exit.at).toLocaleString() }),
    ...(task.stalled_since && { "Stalled since": new Date(task.stalled_since).toLocaleString() }),
    Created: new Date(task.created_at).toLocaleString(),
  };
  if (state && /^https?:/.test(state.uri)) facts.Link = state.uri;
  const rows = Object.entries(facts).flatMap(([label, value]) => {
    const cell = element("dd", label === "Link" ? "" : value);
    if (label === "Link") {
      const link = element("a", value);
      link.href = value;
      link.rel = "noopener noreferrer";
      cell.append(link);
    }
    return [element("dt", label), cell];
  });
  $("facts").replaceChildren(...rows);
  setText("prompt", task.initial_prompt);
}

function describe(value) {
  if (value === null || value === undefined || value === "") return "none";
  if (typeof value !== "object") return String(value);
  if ("state" in value) return value.message ? `${value.state} (${value.message})` : value.state;
  if ("why" in value) return value.words ? `${value.why} (${value.words})` : value.why;
  if ("healthy" in value) return value.healthy ? "healthy" : value.reason;
  return JSON.stringify(value);
}

function timelineItem(time, words) {
  const item = element("li");
  item.dataset.time = time;
  const heading = element("p");
  heading.append(timeElement(time), element("span", ` · ${words}`, "who"));
  item.append(heading);
  return item;
}

function addToTimeline(item) { // newest first; times are in one format, so their texts are in order
  const timeline = $("timeline");
  let next = timeline.firstElementChild;
  while (next && next.dataset.time > item.dataset.time) next = next.nextElementSibling;
  timeline.insertBefore(item, next);
  if (timeline.childElementCount > MAX_TIMELINE) {
    actionElements.delete(timeline.lastElementChild.dataset.action);
    timeline.lastElementChild.remove();
  }
}

function showChange(change) {
  const item = timelineItem(change.time, change.cause.words);
  if (change.version === 1) item.append(element("p", "created"));
  else {
    const fields = Object.entries(change.changes);
    if (!fields.length) item.append(element("p", "deleted"));
    for (const [field, { from, to }] of fields) {
      item.append(element("p", `${field.replaceAll("_", " ")}: ${describe(from)} → ${describe(to)}`));
    }
  }
  addToTimeline(item);
}

function showAction(action) { // shown again when its state changes
  const item = timelineItem(action.time, action.words);
  item.dataset.action = action.id;
  item.append(element("p", `${action.input.slice(0, 200)} (${action.state})`));
  const existing = actionElements.get(action.id);
  actionElements.set(action.id, item);
  if (existing) existing.replaceWith(item);
  else addToTimeline(item);
}

async function loadTimeline() {
  const query = `after=${lastPosition}&limit=${TIMELINE_PAGE}&newest=true`;
  const { events, actions } = await (await request(`/events?${query}`)).json();
  for (const change of events) {
    if (change.position > lastPosition) {
      lastPosition = change.position;
      showChange(change);
    }
  }
  actions.forEach(showAction);
}

async function loadLogs() {
  const { logs } = await (await request("/logs")).json();
  const box = $("log");
  const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  if (logs.length && !logElements.size) box.replaceChildren();
  let previous = null; // an entry that came late belongs before those that are shown already
  for (const entry of logs) {
    const existing = logElements.get(entry.id);
    if (existing) {
      const body = existing.querySelector("pre");
      if (body.textContent !== entry.content) body.textContent = entry.content;
      previous = existing;
      continue;
    }
    const created = element("div", "", `entry ${entry.type}`);
    const heading = element("div", "", "who");
    heading.append(entry.type === "input" ? "User · " : "Agent · ", timeElement(entry.time));
    created.append(heading, element("pre", entry.content));
    if (previous) previous.after(created);
    else box.prepend(created);
    previous = created;
    logElements.set(entry.id, created);
  }
  if (atEnd) box.scrollTop = box.scrollHeight;
}

async function loadExplanation() {
  const explained = await (await request("/explain")).json();
  setText("because", explained.status.because);
  const isOver = explained.agent_exit.rule !== "agent_exit.none" && explained.agent_exit.rule !== explained.status.rule;
  const isStalled = explained.stalled_since.value !== null;
  setText("agent", isOver ? explained.agent_exit.because : isStalled ? explained.stalled_since.because : "");
  $("agent").hidden = !$("agent").textContent;
  $("resume").hidden = !explained.resume.value;
}

async function resume() {
  $("resume").disabled = true;
  try {
    await request("/resume", {}, undefined, "POST");
    showNote("");
    $("resume").hidden = true;
  } catch (error) {
    if (error instanceof Unauthorized) return showSignIn(INVALID_TOKEN);
    showNote(error instanceof NotFound ? "The task was deleted." : error.message);
  } finally {
    $("resume").disabled = false;
  }
  refreshDetails();
}

let refreshAgain = false;
let refreshing = false;
async function refreshDetails() { // all but the document; changes during a refresh cause only one more
  refreshAgain = true;
  if (refreshing) return;
  refreshing = true;
  try {
    while (refreshAgain) {
      refreshAgain = false;
      await Promise.all([loadTimeline(), loadExplanation(), loadLogs()]);
    }
  } catch (error) {
    if (error instanceof Unauthorized) showSignIn(INVALID_TOKEN);
    else if (!(error instanceof NotFound)) showNote(error.message);
  } finally {
    refreshing = false;
  }
}

function handleEvent(event, data) {
  if (event === "task.snapshot") showTask(JSON.parse(data));
  else if (event === "task.updated" || event === "task.created") showTask(JSON.parse(data).data.task);
  else if (event === "task.deleted") throw new NotFound();
  else return;
  refreshDetails();
}

async function readEvents(response) { // https://html.spec.whatwg.org/multipage/server-sent-events.html
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let incomplete = "", event = "", data = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (incomplete + value).split("\n");
    incomplete = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (data) handleEvent(event, data);
        event = data = "";
      } else if (line.startsWith("id: ")) lastEventId = line.slice(4);
      else if (line.startsWith("event: ")) event = line.slice(7);
      else if (line.startsWith("data: ")) data += line.slice(6);
    }
  }
}

async function watch() {
  let delay = 500;
  const controller = (streamController = new AbortController());
  while (!controller.signal.aborted) {
    try {
      const headers = lastEventId ? { "Last-Event-ID": lastEventId } : {};
      const response = await request("/watch", headers, controller.signal);
      showConnection("Live", true);
      showNote("");
      delay = 500;
      await readEvents(response);
    } catch (error) {
      if (controller.signal.aborted) return;
      if (error instanceof Unauthorized) return showSignIn(INVALID_TOKEN);
      if (error instanceof NotFound) {
        showConnection("Ended");
        return showNote("The task does not exist, was deleted, or this token may not see it.");
      }
    }
    showConnection("Reconnecting");
    await new Promise((done) => setTimeout(done, delay * (0.5 + Math.random() / 2)));
    delay = Math.min(delay * 2, MAX_RETRY_DELAY);
  }
}

function showSignIn(reason = "") {
  if (streamController) streamController.abort();
  token = lastEventId = "";
  sessionStorage.removeItem(TOKEN_KEY);
  lastPosition = 0;
  logElements.clear();
  actionElements.clear();
  $("log").replaceChildren();
  $("timeline").replaceChildren();
  $("task").hidden = true;
  $("signout").hidden = true;
  $("signin").hidden = false;
  showConnection("Not connected");
  showNote(reason);
  $("token").focus();
}

function start() {
  $("signin").hidden = true;
  $("signout").hidden = false;
  showConnection("Connecting");
  watch();
}

$("signin").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  $("token").value = "";
  if (!token) return;
  sessionStorage.setItem(TOKEN_KEY, token);
  start();
});
$("resume").addEventListener("click", resume);
$("signout").addEventListener("click", () => showSignIn());
setInterval(() => { // new log entries cause no event
  if (token && !document.hidden && !$("task").hidden && $("connection").classList.contains("live")) refreshDetails();
}, LOG_INTERVAL);
if (token) start();
else showSignIn();
