"""Mistakes: each is refused in one line that names it, before anything runs."""

import pytest

from experiments.launch import launch

BAD = [
    # a word that is not there
    ("strategy=dilco", "strategy=dilco: no such choice; try 'diloco'"),
    ("topology=rign", "topology=rign: no such choice; try 'ring'"),
    ("compressor=topk", "compressor=topk: no such choice; try 'top_k'"),
    ("task=markow", "task=markow: no such choice; try 'markov'"),
    ("device=h1000", "device=h1000: no such choice; try 'h100'"),
    ("workload=2b", "workload=2b: no such choice; try '1b'"),
    ("experiment=first_ligth", "experiment=first_ligth: no such choice; try 'first_light'"),
    ("overlay=rings", "overlay=rings: no such choice; try 'ring'"),
    ("strategy=demo strategy.decy=0.9", "strategy.decy: no such key; try 'decay'"),
    ("strategy.targt_=x", "strategy.targt_: no such key; try 'outer'"),
    ("stratgy=diloco", "stratgy: no such key; try 'strategy'"),
    ("sed=1", "sed: no such key; try 'seed'"),
    ("strategy.inner_stesp=5", "strategy.inner_stesp: no such key; try 'inner_steps'"),
    ("+topology.bandwith=1Gbps", "topology.bandwith: no such key; try 'bandwidth'"),
    ("~topology.nn", "topology.nn: no such key; try 'n'"),
    ("task.contxt=4", "task.contxt: no such key; try 'context'"),
    ("+strategy.outer.momentun=0.5", "strategy.outer.momentun: no such key; try 'momentum'"),
    ("compute=mta", "compute=mta: no such choice; try 'meta'; there are full, meta"),
    ("compute.wrokers=2", "compute.wrokers: no such key; try 'workers'"),
    ("compute.accelerator=gpu", "compute.accelerator='gpu': expected cpu or cuda or auto"),
    ("compute.engine=stackd", "compute.engine='stackd': expected auto or stacked"),
    ("compute.state_dtype=bf16", "did you mean 'bfloat16'?"),
    ("compute.precision=float16", "compute.precision='float16': expected float32 or tf32"),
    ("collectives=flow", "'flow'"),
    ("device.gpus=h10", "device.gpus='h10': did you mean 'h100'?"),
    ("topology=homes topology.country=UX", "topology.country='UX'"),
    ("topology=homes topology.technologies=cabel", "did you mean 'cable'?"),
    ("topology.regions=[Est US]", "did you mean 'East US'?"),
    ("strategy._target_=optimizers.DiLoCoo", "optimizers.DiLoCoo"),
    ("network=defualt", "network=defualt: no such choice; try 'default'"),
    ("network.failure=shrnk", "network.failure='shrnk': expected shrink or abort"),
    ("network.all_reduce=trea", "did you mean 'tree'?"),
    ("strategy.overlap=layrwise", "strategy.overlap='layrwise'"),
    # not an override at all
    ("strategy", "strategy: not of the form key=value"),
    ("strategy=diloco,demo", "strategy=diloco,demo: several values; give -m"),
    # a wrong unit or type
    ("network.detection=10sec", "network.detection='10sec': unknown unit 'sec'"),
    ("topology=ring topology.bandwidth=10Gbs", "unknown unit 'Gbs'; did you mean 'Gbps'?"),
    ("topology=ring topology.latency=10Mbps", "topology.latency='10Mbps': unknown unit 'Mbps'"),
    ("topology=ring topology.bandwidth=fast", "topology.bandwidth='fast': expected a quantity"),
    ("budget.seconds=2hours", "budget.seconds='2hours': unknown unit 'hours'"),
    ("budget.nbytes=10Mb", "budget.nbytes='10Mb': unknown unit 'Mb'"),
    ("device.speed=100TFLOP", "device.speed='100TFLOP': unknown unit 'TFLOP'"),
    ("topology.n=many", "topology.n='many': must be a whole number"),
    ("strategy.inner_steps=2.5", "strategy.inner_steps=2.5: must be a whole number"),
    ("local.lr=true", "local.lr=True: must be a number"),
    ("seed=abc", "seed='abc': must be a whole number"),
    ("seed=true", "seed=True: must be a whole number"),
    ("target_loss=low", "target_loss='low': must be a number or null"),
    ("evaluations=2.5", "evaluations=2.5: must be a whole number"),
    ("fresh=maybe", "fresh='maybe': must be true or false"),
    ("profile=1", "profile=1: must be true or false"),
    ("accelerator=cuda", "accelerator: no such key"),
    ("compute.workers=two", "compute.workers='two': must be a whole number or null"),
    ("compute.memory_limit=8Gb", "compute.memory_limit='8Gb': unknown unit 'Gb'"),
    ("compute.values=full", "compute.values='full': must be true or false"),
    # nothing where something is needed
    ("strategy=null", "strategy=null: must name a choice; `archipelago list strategy`"),
    ("~churn", "churn: needed; `archipelago list churn`"),
    ("strategy.outer=null", "strategy.outer=null: needs a value"),
    ("strategy.inner_steps=null", "strategy.inner_steps=null: needs a value"),
    # an impossible value
    ("network.approximate=2", "network.approximate=2: must lie in [0, 1)"),
    ("network.connections=0", "network.connections=0: expected 1"),
    ("bandwidth_trace=access bandwidth_trace.table=no.csv", "bandwidth_trace: "),
    ("topology=ring topology.n=1", "topology.n=1: a ring needs n >= 2"),
    ("topology.n=0", "topology.n=0"),
    ("topology=ring topology.bandwidth=-1Gbps", "topology.bandwidth=-1.25e+08: must be > 0"),
    ("topology=ring topology.latency=-1ms", "topology.latency=-0.001: must be >= 0"),
    ("topology=erdos_renyi topology.p=0 strategy=all_reduce", "p=0"),
    ("topology=hypercube topology.n=6", "topology.n=6"),
    ("topology=random_regular topology.degree=9", "degree=9"),
    ("strategy.inner_steps=0", "strategy.inner_steps=0: must be >= 1"),
    ("compressor=top_k ~compressor.ratio +compressor.k=999999", "compressor.k=999999: must be"),
    ("compressor=top_k compressor.ratio=2", "ratio=2: must be above 0 and at most 1"),
    ("compressor=int8 compressor.bits=1", "compressor.bits=1: must be an integer from 2 to 16"),
    ("compressor=dct_top_k compressor.codec._args_.1.k=5000", "k=5000: must be between 1 and 4096"),
    ("strategy=demo strategy.decay=1.5", "strategy.decay=1.5: must be in [0, 1)"),
    ("strategy=demo strategy.aggregate=some", "strategy.aggregate='some'"),
    ("strategy=streaming_diloco strategy.fragments=3", "strategy.inner_steps=50: must be"),
    ("strategy=parameter_server strategy.server=8", "strategy.server=8: must be between 0 and 7"),
    ("coordinator.min_nodes=99", "coordinator.min_nodes=99: at most the 8 nodes"),
    ("churn=exponential churn.up=0h", "churn.up=0: must be > 0"),
    ("churn=exponential budget.seconds=null", "budget.seconds=null: churn is drawn"),
    ("budget.seconds=null budget.steps=null", "budget: the run would never end"),
    ("budget.steps=0", "budget.steps=0: must be > 0"),
    ("seed=-1", "seed=-1: must be an integer >= 0"),
    ("evaluations=0", "evaluations=0"),
    ("compute.workers=0", "compute.workers=0: must be >= 1, or null for one per core"),
    ("compute.memory_limit=0", "compute.memory_limit=0: must be > 0"),
    ("compute.precision=tf32", "compute.precision='tf32': a CPU computes in 'float32'"),
    ("local.lr=-1", "local.lr=-1: must be >= 0"),
    ("local.betas=[0.9,1.0]", "local.betas[1]=1.0: must lie in [0, 1)"),
    # parts that do not fit each other, or are not there
    ("task=text", "task.source.paths: has no default"),
    ("topology=graphml topology.path=nowhere.graphml", "nowhere.graphml"),
    ("churn=trace churn.path=nowhere.csv", "nowhere.csv"),
    ("device=rtx4090 workload=10b", "needs"),
    ("overlay=exponential strategy=dpsgd", "undirected"),
    ("topology=torus overlay=ring", "topology.n"),
    ("compute.memory_limit=2MB", "memory_limit is 2 MB: not even one of them fits; or choose"),
    ("compute=meta workload=1b compressor=threshold", "its size depends on values"),
    ("--config-dir=nowhere strategy=diloco", "nowhere"),
]


@pytest.mark.parametrize(("line", "said"), BAD, ids=[line for line, _ in BAD])
def test_a_mistake_is_refused_in_one_line(line, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert launch(_split(line)) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_grid_runs_nothing_if_one_of_its_cells_is_wrong(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert launch(["-m", "topology=ring", "topology.n=4,1"]) == 2
    assert "topology.n=1: a ring needs n >= 2" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def _split(line):
    """Words, but for the region with a space in its name."""
    return ["topology.regions=[Est US]"] if "Est US" in line else line.split()
