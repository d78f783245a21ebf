"""A person at a browser: opens a page, types a name and any password where it is asked for, agrees where that is asked for, and follows
until a page has no form any more. Prints that page.

    browser.py URL NAME
"""

import html.parser
import http.cookiejar
import sys
import urllib.parse
import urllib.request


class Form(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.action, self.fields = None, {}

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "form" and attributes.get("method", "").lower() == "post" and self.action is None:
            self.action = attributes["action"]
        elif tag == "input" and "name" in attributes:
            self.fields[attributes["name"]] = attributes.get("value") or ""


url, name = sys.argv[1:]
opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
page = opener.open(url, timeout=30)
for _ in range(8):
    text, form = page.read().decode(), Form()
    form.feed(text)
    if form.action is None:
        break
    if "login" in form.fields:
        form.fields |= {"login": name, "password": "any"}
    body = urllib.parse.urlencode(form.fields).encode()
    page = opener.open(urllib.parse.urljoin(page.url, form.action), body, timeout=30)
print(text)
