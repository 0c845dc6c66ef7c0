"""HTML pages in tests: a parser that collects tags and texts, and a text that tries to be HTML."""

import html.parser

HOSTILE = "</div></template></script><script>document.title = 'run'</script><img src=http://x/ onerror=alert(1)>&amp;"
VOID = {"meta", "input", "br", "img", "link"}


class Page(html.parser.HTMLParser):
    """The tags in order, and the texts of elements by class."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.texts = [], [], []
        self.feed(text)
        assert not self.open  # every element is closed

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self.open.append((tag, attributes.get("class") or "", len(self.texts)))
            self.texts.append([tag, attributes.get("class") or "", ""])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for _, _, place in self.open:
            self.texts[place][2] += data

    def get_texts(self, name):
        return [text for tag, classes, text in self.texts if name in (tag, *classes.split())]
