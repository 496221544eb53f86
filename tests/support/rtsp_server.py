"""A real RTSP server for tests, run by the system's Python: GStreamer's server with x264 or an
H.264 clip (`clip`, an MP4 file, played once from its begin) behind it.

    /usr/bin/python3 tests/support/rtsp_server.py '{"port": 0, "path": "/cam", "width": 320, ...}'

Prints `PORT n` once it serves. Commands on stdin, one a line, each answered by `OK`:
`stall` stops sending without closing anything, `resume` goes on. `vanish` is the test killing the process.
"""

import json
import sys
import threading

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402


class Factory(GstRtspServer.RTSPMediaFactory):
    """Serves one pipeline to all clients; a pad probe drops everything while stalled."""

    def __init__(self, launch):
        super().__init__()
        self.stalled = False
        self.set_launch(launch)
        self.set_shared(True)
        self.connect("media-configure", self._configure)

    def _configure(self, _factory, media):
        pad = media.get_element().get_by_name("pay0").get_static_pad("sink")
        pad.add_probe(Gst.PadProbeType.BUFFER, self._probe)

    def _probe(self, _pad, _info):
        return Gst.PadProbeReturn.DROP if self.stalled else Gst.PadProbeReturn.OK


def say(line):
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main():
    wanted = json.loads(sys.argv[1])
    Gst.init(None)
    clip = wanted.get("clip")
    caps = f"video/x-raw,width={wanted['width']},height={wanted['height']},framerate={wanted['fps']}/1"
    factory = Factory(
        f"( filesrc location={clip} ! qtdemux ! rtph264pay name=pay0 pt=96 config-interval=1 )"
        if clip
        else f"( videotestsrc is-live=true pattern=ball ! {caps} "
        f"! x264enc tune=zerolatency speed-preset=ultrafast key-int-max={wanted['fps']} "
        f"bitrate=1000 ! rtph264pay name=pay0 pt=96 config-interval=1 )"
    )
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(str(wanted["port"]))
    if wanted.get("user"):
        auth = GstRtspServer.RTSPAuth()
        token = GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", "viewer")
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(wanted["user"], wanted["password"]), token)
        server.set_auth(auth)
        factory.add_role_from_structure(
            Gst.Structure.from_string(
                "viewer, media.factory.access=(boolean)true, media.factory.construct=(boolean)true"
            )[0]
        )
    server.get_mount_points().add_factory(wanted["path"], factory)
    if server.attach(None) == 0:
        say(f"port {wanted['port']} cannot be used")
        return 1
    loop = GLib.MainLoop()

    def obey():
        for line in sys.stdin:
            factory.stalled = line.strip() == "stall"
            say("OK")
        loop.quit()

    threading.Thread(target=obey, daemon=True).start()
    say(f"PORT {server.get_bound_port()}")
    loop.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
