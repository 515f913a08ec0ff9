// @ts-check
// What a task waits for a runner to do, in words that follow "it waits".

const WANTS = new Map(Object.entries({
  "workspace.start": "to start", "workspace.stop": "to be stopped", "workspace.delete": "to be deleted", "agent.input": "for a message to be taken",
  "agent.answer": "for an answer to be taken", "agent.interrupt": "to be interrupted",
}));

/** @param {string} type of a work request */
export function waitsFor(type) {
  return WANTS.get(type) || `for ${type}`;
}
