"""Run a load in SimGrid; started by `experiments.bench.networks.rival` under a Python that has it.

usage: simgrid_driver.py MODE < LOAD.json > RESULT.json

LOAD has the arrays of `experiments.bench.networks.loads.Load` as lists: that Python may have no
numpy. MODE is SimGrid's `network/optim`, Lazy or Full. RESULT has `seconds`, the wall time inside
`Engine.run` (the platform is built before), and `finish`, the simulated end of each flow in
seconds.

Pure fluid max-min: model CM02 without the limit of a TCP window, without the share of reverse
traffic, without weights; there is no latency (which would weight flows). A star zone holds the
routes, since a full one needs N^2 memory.
"""

import json
import sys
import time

import simgrid as sg

SETTINGS = {
    "network/model": "CM02",
    "network/TCP-gamma": "0",
    "network/crosstraffic": "0",
    "network/weight-S": "0",
}


def build(load, mode):
    """The engine, and its hosts."""
    settings = [f"--cfg={key}:{value}" for key, value in SETTINGS.items()]
    engine = sg.Engine(
        ["bench", *settings, f"--cfg=network/optim:{mode}", "--log=root.thres:critical"]
    )
    zone = sg.NetZone.create_star_zone("star")
    links = [zone.create_link(f"link{i}", bw) for i, bw in enumerate(load["capacity"])]
    for link in links:
        link.set_latency(0.0)
        link.seal()
    hosts = [zone.create_host(f"host{i}", 1e9) for i in range(len(load["out"]))]
    for host, out, into in zip(hosts, load["out"], load["into"]):
        ways = [[sg.LinkInRoute(links[i]) for i in way] for way in (out, into)]
        zone.add_route(host.netpoint, None, None, None, ways[0], False)
        zone.add_route(None, host.netpoint, None, None, ways[1], False)
    zone.seal()
    return engine, hosts


def main():
    """Read, run, write."""
    load = json.load(sys.stdin)
    engine, hosts = build(load, sys.argv[1])
    flows = list(zip(load["src"], load["dst"], load["nbytes"]))
    finish = []

    def drive():
        sent = [sg.Comm.sendto_async(hosts[a], hosts[b], int(size)) for a, b, size in flows]
        for comm in sent:
            comm.wait()
            finish.append(comm.finish_time)

    sg.Actor.create("driver", hosts[0], drive)
    began = time.perf_counter()
    engine.run()
    json.dump({"seconds": time.perf_counter() - began, "finish": finish}, sys.stdout)


if __name__ == "__main__":
    main()
