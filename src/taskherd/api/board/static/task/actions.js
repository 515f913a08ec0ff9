// @ts-check
// What people do with a task, each by a button and a key, with a confirmation where it destroys something.
import * as api from "../api.js";
import { ask, confirm, toast } from "../dialog.js";
import * as router from "../router.js";
import * as session from "../session.js";
import { canPause, canResume, isBuilding, title } from "../state.js";
import { html } from "../vendor/lit-html/lit-html.js";

/** @typedef {{task: any, path: string, changed: () => void, gone: () => void}} Context */

/** `run` returns true if the API has accepted it, so that the task is about to change. @typedef {{name: string, label: string, key: string, may: (task: any, explained: any) => boolean, unless?: (task: any, explained: any) => string, run: (context: Context) => Promise<boolean | void>, danger?: boolean, rare?: boolean}} Action */

const BUILDING = "Its workspace is being started or stopped: wait until that has ended.";

/** @type {Action[]} */
export const ACTIONS = [
  {
    name: "interrupt", label: "Interrupt", key: "i", may: isInterruptible, run: (context) => post(context, "interrupt", "Interrupting…"),
    unless: (task) => (task.interrupt ? "It is being interrupted already." : "There is nothing to interrupt: its agent is not at work."),
  },
  {
    name: "resume", label: "Resume", key: "r", may: (task, explained) => canResume(task) && Boolean(explained?.resume?.value),
    run: (context) => post(context, "resume", "Starting the agent…"),
    unless: (task, explained) => (isBuilding(task) ? BUILDING : canResume(task) && explained ? explained.resume.because : "Its agent runs already."),
  },
  {
    name: "pause", label: "Pause", key: "p", may: canPause, run: pause,
    unless: (task) => (isBuilding(task) ? BUILDING : "There is nothing to pause: it does not run."),
  },
  { name: "like", label: "Start one like it", key: "c", may: () => true, run: async ({ task }) => router.go(api.likePath(task)), rare: true },
  {
    name: "edit", label: "Edit the prompt…", key: "e", may: (task) => task.status === "paused", run: editPrompt, rare: true,
    unless: () => "The prompt can be edited while the task is paused.",
  },
  { name: "delete", label: "Delete…", key: "#", may: () => true, run: remove, danger: true, rare: true },
];

/** @param {any} task */
function isInterruptible(task) {
  if (task.status !== "active" || task.agent_exit || task.interrupt) return false;
  return task.current_state?.state === "working" || Boolean(task.requests_open);
}

/**
 * @param {Context} context
 * @param {string} verb
 * @param {string} done
 */
async function post({ path, changed }, verb, done) {
  const answer = await api.send("POST", `${path}/${verb}`);
  if (answer.ok) toast(done);
  else if (!answer.aborted) toast(api.explain(answer), { bad: true });
  changed();
  return answer.ok;
}

/** @param {Context} context */
async function pause(context) {
  const content = "Its agent is stopped, in the middle of what it does. Its files stay, and you can resume it.";
  const isBusy = context.task.current_state?.state === "working" && context.task.status === "active";
  if (isBusy && !(await confirm({ title: `Pause ${title(context.task)}?`, content, action: "Pause" }))) return false;
  return post(context, "pause", "Pausing…");
}

/** @param {Context} context */
async function editPrompt({ task, path, changed }) {
  const draft = `prompt/${task.id}`;
  let problem = "";
  for (;;) { // what was written is asked for again until it is saved, or given up
    const content = problem ? html`<p class="problem" role="alert">${problem}</p>` : "The agent gets it with the next start.";
    const text = await ask({ title: "Edit the prompt", label: "Prompt", action: "Save", draft, value: task.initial_prompt, content, rows: 10 });
    if (text === task.initial_prompt) session.keepDraft(draft, "");
    if (text === null || text === task.initial_prompt) return;
    const answer = await api.send("PATCH", `${path}/input`, { input: text });
    changed();
    if (answer.ok) {
      session.keepDraft(draft, "");
      return toast("The prompt was changed.");
    }
    if (answer.aborted) return;
    problem = api.explain(answer);
  }
}

/** @param {Context} context */
async function remove({ task, path, gone }) {
  const content = "Its workspace is deleted with all files, its agent is stopped, and the conversation is not shown any more. This cannot be undone.";
  if (!(await confirm({ title: `Delete ${title(task)}?`, content, action: "Delete", danger: true }))) return;
  const answer = await api.send("DELETE", path);
  if (answer.ok) gone();
  else if (!answer.aborted) toast(api.explain(answer), { bad: true });
}
