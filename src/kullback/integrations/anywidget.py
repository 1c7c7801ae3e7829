"""A notebook widget, built on anywidget, that shows a page such as the explorer in a sandboxed frame."""

from kullback.errors import MissingDependencyError

try:
    import anywidget
    import traitlets
except ModuleNotFoundError as error:
    if error.name not in ("anywidget", "traitlets"):
        raise
    raise MissingDependencyError("anywidget is missing: pip install 'kullback[notebook]'") from error

__all__ = ["PageWidget"]


class PageWidget(anywidget.AnyWidget):
    """A notebook widget that shows a self-contained HTML page.

    The frame is sandboxed, so that the page has no access to the notebook.

    Args:
        page: The HTML of the page, for example from `kullback.explore.explorer.explorer_page`.
        height: The height of the frame in pixels.

    Example:
        >>> from kullback.explore.explorer import explorer_page
        >>> widget = PageWidget(page=explorer_page({}, live=False), height=700)
        >>> widget.height, "Which Q is nearest?" in widget.page
        (700, True)
    """

    page = traitlets.Unicode("").tag(sync=True)
    height = traitlets.Int(900).tag(sync=True)
    _esm = """
    function render({ model, el }) {
      const frame = document.createElement("iframe");
      frame.setAttribute("sandbox", "allow-scripts");
      frame.setAttribute("title", "Kullback");
      const show = () => {
        frame.srcdoc = model.get("page");
        frame.style = `width: 100%; border: 0; height: ${model.get("height")}px`;
      };
      model.on("change:page change:height", show);
      show();
      el.append(frame);
    }
    export default { render };
    """
