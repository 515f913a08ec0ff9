// @ts-check
// The answers to choose from: what refuses stands before what allows, and one of them is the main one.

/** @typedef {{id: string, label: string, kind: string}} Option */

/**
 * The options in the order of their buttons. The main one allows, but not for always; of other answers none is.
 * @param {Option[]} options
 * @returns {{option: Option, isMain: boolean}[]}
 */
export function inOrder(options) {
  const main = options.find((each) => each.kind === "allow_once");
  const rejects = (/** @type {Option} */ each) => Number(each.kind.startsWith("reject"));
  return [...options].sort((one, other) => rejects(other) - rejects(one)).map((option) => ({ option: named(option, options), isMain: option === main }));
}

/**
 * The option, with its id in the label if another one has the same label.
 * @param {Option} option
 * @param {Option[]} options
 */
function named(option, options) {
  const isLike = (/** @type {Option} */ each) => each !== option && each.label.toLowerCase() === option.label.toLowerCase();
  return options.some(isLike) ? { ...option, label: `${option.label} (${option.id})` } : option;
}

/**
 * What became of a request that is not open any more, in words.
 * @param {any} request
 */
export function became({ state, answer, options = [], closed_at: closed }) {
  const chosen = options.find((/** @type {Option} */ each) => each.id === answer?.option_id)?.label;
  const who = answer && (answer.by || "The template’s policy");
  const words = answer ? `${who} answered${chosen ? `: ${chosen}` : ""}` : "";
  if (state === "answered") return answer?.delivered_at === null && closed ? `${words}, but the agent had another answer` : words || "Answered";
  const end = state === "expired" ? "it had expired" : "the agent no longer waited for it";
  if (words) return `${words}, but ${end}`;
  return state === "expired" ? "It expired" : "The agent no longer waits for it";
}
