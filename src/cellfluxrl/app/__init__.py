"""The web app of `cellfluxrl app`: `simulation` computes, `views` shows, `layout` is the page, `command` starts it."""
