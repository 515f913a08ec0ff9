// Loaded as a blocking script before all modules, so it stays this small: it applies the chosen colour scheme before the
// first paint, and asks for what Home reads first while its scripts are still on their way. `api.js` takes the answers.
(() => {
  const theme = localStorage.getItem("taskherd-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;

  const token = sessionStorage.getItem("taskherd-token");
  if (!token || location.pathname !== "/") return;
  const terms = localStorage.getItem("taskherd-home-scope") === "everyone" ? "" : "owner:me";
  const begun = (window.taskherdBegun = new Map());
  const begin = (path, accept = "application/json") => {
    const stop = new AbortController();
    const headers = { Accept: accept, "Coder-Session-Token": token };
    const options = { headers, signal: stop.signal, cache: "no-store", credentials: "omit", redirect: "error" };
    const response = fetch(`/api/v2${path}`, options);
    response.catch(() => {}); // who takes it is told
    begun.set(path, { response, stop });
    return response;
  };
  begin("/users/me");
  const totals = begin(`/task-totals${terms && `?q=${terms}`}`).then((answer) => answer.clone().json());
  const stream = begin(`/tasks/watch?${terms && `q=${encodeURIComponent(terms)}&`}snapshot=false`, "text/event-stream");
  const standing = stream.then(async (answer) => {
    const reader = answer.clone().body.getReader();
    await reader.read(); // its first position: what is read from now on is at least as new
    reader.cancel();
  });
  const lists = import(new URL("pages/home-lists.js", document.currentScript.src));
  window.taskherdBeginning = Promise.all([lists, totals, standing]).then(([{ PARTS, pathOf }, known]) => {
    for (const part of PARTS) if (part.most(known) > 0) begin(pathOf(part, terms));
  }).catch(() => {}); // without the lists; Home reads them, and says what is wrong
})();
