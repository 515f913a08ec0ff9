// Shows one task live. EventSource can't send a token in a header, so the stream is read with fetch.
"use strict";

const KEY = "taskherd-token";
const LOG_EVERY = 3000;
const RETRY_MOST = 30000;
const TIMELINE_PAGE = 500;

const $ = (id) => document.getElementById(id);
const [, before, user, task] = location.pathname.match(/^(.*)\/tasks\/([^/]+)\/([^/]+)\/?$/);
const api = `${before}/api/v2/tasks/${user}/${task}`;

let token = sessionStorage.getItem(KEY) || "";
let lastId = "";
let seen = 0; // the last position in the timeline
let reading = null; // what ends the stream
const shown = new Map(); // log entries by id

class SignedOut extends Error {}
class Gone extends Error {}

async function ask(path, headers = {}, signal = undefined) {
  const response = await fetch(api + path, {
    headers: { "Coder-Session-Token": token, ...headers }, signal, cache: "no-store", credentials: "omit",
  });
  if (response.status === 401) throw new SignedOut();
  if (response.status === 404) throw new Gone();
  if (!response.ok) throw new Error(`The server answered ${response.status}.`);
  return response;
}

function element(name, content = "", kind = "") {
  const made = document.createElement(name);
  made.textContent = content;
  if (kind) made.className = kind;
  return made;
}

function put(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

function moment(at) {
  const made = element("time", new Date(at).toLocaleString());
  made.dateTime = at;
  return made;
}

function connection(text, live = false) {
  put("connection", text);
  $("connection").classList.toggle("live", live);
}

function note(text) {
  put("note", text);
  $("note").hidden = !text;
}

function show(document_) {
  $("task").hidden = false;
  const name = document_.display_name || document_.name;
  document.title = `${document_.status}: ${name}`;
  put("name", name);
  put("status", document_.status);
  $("status").className = `badge ${document_.status}`;
  const state = document_.current_state;
  put("summary", state ? `${state.state}${state.message ? `: ${state.message}` : ""}` : "The agent has said nothing yet.");
  const health = document_.workspace_agent_health;
  const facts = {
    Name: document_.name,
    Owner: document_.owner_name,
    Template: document_.template_display_name || document_.template_name,
    Workspace: `${document_.workspace_name}, ${document_.workspace_status || "unknown"}`,
    Agent: health ? (health.healthy ? "healthy" : health.reason) : "none",
    Created: new Date(document_.created_at).toLocaleString(),
  };
  if (state && /^https?:/.test(state.uri)) facts.Link = state.uri;
  const rows = Object.entries(facts).flatMap(([label, value]) => {
    const told = element("dd", label === "Link" ? "" : value);
    if (label === "Link") {
      const link = element("a", value);
      link.href = value;
      link.rel = "noopener noreferrer";
      told.append(link);
    }
    return [element("dt", label), told];
  });
  $("facts").replaceChildren(...rows);
  put("prompt", document_.initial_prompt);
}

function words(value) {
  if (value === null || value === undefined || value === "") return "none";
  if (typeof value !== "object") return String(value);
  if ("state" in value) return value.message ? `${value.state} (${value.message})` : value.state;
  if ("healthy" in value) return value.healthy ? "healthy" : value.reason;
  return JSON.stringify(value);
}

function tell(change) {
  const item = element("li");
  const cause = change.cause.type ? `${change.cause.kind} ${change.cause.type}` : change.cause.kind;
  const when = element("p");
  when.append(moment(change.time), element("span", ` · ${cause}`, "who"));
  item.append(when);
  if (change.version === 1) item.append(element("p", "created"));
  else {
    const fields = Object.entries(change.changes);
    if (!fields.length) item.append(element("p", "deleted"));
    for (const [field, { from, to }] of fields) {
      item.append(element("p", `${field.replaceAll("_", " ")}: ${words(from)} → ${words(to)}`));
    }
  }
  $("timeline").prepend(item);
}

async function timeline() {
  for (;;) {
    const { events } = await (await ask(`/events?after=${seen}&limit=${TIMELINE_PAGE}`)).json();
    for (const change of events) {
      if (change.position > seen) {
        seen = change.position;
        tell(change);
      }
    }
    if (events.length < TIMELINE_PAGE) return;
  }
}

async function logs() {
  const told = await (await ask("/logs")).json();
  const box = $("log");
  const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  if (told.logs.length && !shown.size) box.replaceChildren();
  for (const entry of told.logs) {
    const known = shown.get(entry.id);
    if (known) {
      const body = known.querySelector("pre");
      if (body.textContent !== entry.content) body.textContent = entry.content;
      continue;
    }
    const made = element("div", "", `entry ${entry.type}`);
    const head = element("div", "", "who");
    head.append(entry.type === "input" ? "Person · " : "Agent · ", moment(entry.time));
    made.append(head, element("pre", entry.content));
    box.append(made);
    shown.set(entry.id, made);
  }
  if (atEnd) box.scrollTop = box.scrollHeight;
}

async function why() {
  const told = await (await ask("/explain")).json();
  put("because", told.status.because);
}

let wanted = false;
let busy = false;
async function around() { // everything beside the document, once for many changes
  wanted = true;
  if (busy) return;
  busy = true;
  try {
    while (wanted) {
      wanted = false;
      await Promise.all([timeline(), why(), logs()]);
    }
  } catch (error) {
    if (error instanceof SignedOut) signIn("That token does not hold, or no longer.");
    else if (!(error instanceof Gone)) note(error.message);
  } finally {
    busy = false;
  }
}

function take(event, data) {
  if (event === "task.snapshot") show(JSON.parse(data));
  else if (event === "task.updated" || event === "task.created") show(JSON.parse(data).data.task);
  else if (event === "task.deleted") throw new Gone();
  else return;
  around();
}

async function read(response) { // https://html.spec.whatwg.org/multipage/server-sent-events.html
  const lines = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", event = "", data = "";
  for (;;) {
    const { value, done } = await lines.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const line of parts) {
      if (line === "") {
        if (data) take(event, data);
        event = data = "";
      } else if (line.startsWith("id: ")) lastId = line.slice(4);
      else if (line.startsWith("event: ")) event = line.slice(7);
      else if (line.startsWith("data: ")) data += line.slice(6);
    }
  }
}

async function follow() {
  let wait = 500;
  const own = (reading = new AbortController());
  while (!own.signal.aborted) {
    try {
      const response = await ask("/watch", lastId ? { "Last-Event-ID": lastId } : {}, own.signal);
      connection("Live", true);
      note("");
      wait = 500;
      await read(response);
    } catch (error) {
      if (own.signal.aborted) return;
      if (error instanceof SignedOut) return signIn("That token does not hold, or no longer.");
      if (error instanceof Gone) {
        connection("Ended");
        return note("There is no such task, or it was deleted, or this token may not see it.");
      }
    }
    connection("Connecting again");
    await new Promise((done) => setTimeout(done, wait * (0.5 + Math.random() / 2)));
    wait = Math.min(wait * 2, RETRY_MOST);
  }
}

function signIn(reason = "") {
  if (reading) reading.abort();
  token = lastId = "";
  sessionStorage.removeItem(KEY);
  seen = 0;
  shown.clear();
  $("log").replaceChildren();
  $("timeline").replaceChildren();
  $("task").hidden = true;
  $("forget").hidden = true;
  $("signin").hidden = false;
  connection("Not connected");
  note(reason);
  $("token").focus();
}

function begin() {
  $("signin").hidden = true;
  $("forget").hidden = false;
  connection("Connecting");
  follow();
}

$("signin").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  $("token").value = "";
  if (!token) return;
  sessionStorage.setItem(KEY, token);
  begin();
});
$("forget").addEventListener("click", () => signIn());
setInterval(() => { // log entries raise no version, so nothing tells of them
  if (token && !document.hidden && !$("task").hidden && $("connection").classList.contains("live")) around();
}, LOG_EVERY);
if (token) begin();
else signIn();
