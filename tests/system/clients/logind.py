"""A mock of systemd-logind on a private bus: gives out inhibitors and announces what it is told to.

    python logind.py BUS_ADDRESS

Standard input: `shutdown true`, `sleep false`, ... announce; `forge shutdown true` has another connection announce it,
straight to whoever holds an inhibitor. Standard output says what happens, a line each, and of an inhibitor that is let go of when,
on CLOCK_BOOTTIME in nanoseconds.
"""

import os
import selectors
import sys
import time

from jeepney import DBusAddress, HeaderFields, MessageType, new_error, new_method_call, new_method_return, new_signal
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import open_dbus_connection

MANAGER = DBusAddress("/org/freedesktop/login1", "org.freedesktop.login1", "org.freedesktop.login1.Manager")
MEMBERS = {"shutdown": "PrepareForShutdown", "sleep": "PrepareForSleep"}


def say(text):
    print(text, flush=True)


def announcement(what, begins):
    return new_signal(MANAGER, MEMBERS[what], "b", (begins == "true",))


class Logind:
    def __init__(self, address):
        self.address = address
        self.connection = open_dbus_connection(address, enable_fds=True)
        self.connection.send_and_get_reply(message_bus.RequestName("org.freedesktop.login1"))
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.connection.sock, selectors.EVENT_READ, self.on_message)
        self.selector.register(sys.stdin, selectors.EVENT_READ, self.on_order)
        self.holder = None
        say("ready")

    def on_message(self, _):
        message = self.connection.receive()
        fields = message.header.fields
        if message.header.message_type != MessageType.method_call:
            return
        if fields.get(HeaderFields.member) != "Inhibit":
            self.connection.send(new_error(message, "org.freedesktop.DBus.Error.UnknownMethod"))
            return
        ours, theirs = os.pipe()
        self.holder = fields[HeaderFields.sender]
        self.connection.send(new_method_return(message, "h", (theirs,)))
        os.close(theirs)
        self.selector.register(ours, selectors.EVENT_READ, self.on_release)
        say("inhibited " + " ".join(message.body))

    def on_release(self, pipe):
        self.selector.unregister(pipe)
        os.close(pipe)
        say(f"released {time.clock_gettime_ns(time.CLOCK_BOOTTIME)}")

    def on_order(self, _):
        words = sys.stdin.readline().split()
        if not words:
            sys.exit(0)
        if words[0] != "forge":
            self.connection.send(announcement(*words))
            return
        forger = open_dbus_connection(self.address)
        message = announcement(*words[1:])
        message.header.fields[HeaderFields.destination] = self.holder
        forger.send(message)
        # A round trip: the forgery has been delivered before the forger leaves.
        forger.send_and_get_reply(message_bus.GetId())
        forger.close()

    def run(self):
        while True:
            for key, _ in self.selector.select():
                key.data(key.fileobj)


Logind(sys.argv[1]).run()
