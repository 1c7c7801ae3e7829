"""Text for a terminal, without the control characters of names, labels and messages."""

__all__ = ["one_line", "printable"]


def printable(text: str) -> str:
    r"""A text whose control characters, other than line feeds, are replaced by escape sequences.

    The names of files and the labels of events can contain sequences that change the state of a terminal.

    Example:
        >>> print(printable("\x1b[31mred"))
        \x1b[31mred
    """
    if text.isprintable():
        return text
    return "".join(c if c == "\n" or c.isprintable() else repr(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    r"""A text as one line, in which line feeds and other control characters are replaced by escape sequences.

    Example:
        >>> print(one_line("two" + chr(10) + "lines"))
        two\nlines
    """
    return printable(text).replace("\n", "\\n")
