// Airflow shows this page in a sandboxed frame, which blocks links to other pages, and has its own light and dark
// theme. This script makes the links work there and follows the theme. Outside a frame the page needs no script.
(() => {
  let outer;
  try { outer = window.parent !== window && window.parent.document; } catch { return; }
  if (!outer) return;
  const airflow = outer.documentElement;
  const followTheme = () => {
    const theme = ["dark", "light"].find((name) => airflow.classList.contains(name));
    document.documentElement.className = theme ?? "";
  };
  new MutationObserver(followTheme).observe(airflow, { attributeFilter: ["class"] });
  followTheme();
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[target]");
    if (!link) return;
    event.preventDefault();
    const outerLink = outer.createElement("a");
    outerLink.href = link.href;
    outerLink.rel = "noopener noreferrer";
    outerLink.target = link.target === "_blank" || event.ctrlKey || event.metaKey ? "_blank" : "_self";
    outerLink.click();
  });
})();
