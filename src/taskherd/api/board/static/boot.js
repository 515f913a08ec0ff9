// Loaded as a blocking script before all modules, so it stays this small: it applies the chosen colour scheme before the
// first paint, and asks for what Home reads first while its scripts are still on their way. `api.js` takes the answers.
(() => {
  const theme = localStorage.getItem("taskherd-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;

  const token = sessionStorage.getItem("taskherd-token");
  if (!token || location.pathname !== "/") return;
  const isMine = localStorage.getItem("taskherd-home-scope") !== "everyone";
  const begun = (window.taskherdBegun = new Map());
  const begin = (path, accept) => {
    const stop = new AbortController();
    const headers = { Accept: accept, "Coder-Session-Token": token };
    const options = { headers, signal: stop.signal, cache: "no-store", credentials: "omit", redirect: "error" };
    const response = fetch(`/api/v2${path}`, options);
    response.catch(() => {}); // who takes it is told
    begun.set(path, { response, stop });
  };
  begin("/users/me", "application/json");
  begin(`/task-totals${isMine ? "?q=owner:me" : ""}`, "application/json");
  begin(`/tasks/watch?${isMine ? "q=owner%3Ame&" : ""}snapshot=false`, "text/event-stream");
})();
