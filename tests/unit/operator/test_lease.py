"""Who leads and who does not, on an API server of a few lines and with clocks that tests turn."""

import asyncio
import itertools

import pytest

from llm_operator.kube import ApiError
from llm_operator.lease import LEASE, Identity, Lease, LeaseLostError, Record, Sight, Timing

A = Identity(pod="", process="a")
B = Identity(pod="", process="b")
QUICK = Timing(renew=0.001, poll=0.001, request=0.02)


class Clock:
    def __init__(self):
        self.time = 1000.0

    def __call__(self):
        return self.time


class Server:
    """Keeps one Lease as the API server does: by versions. Answers nobody while it is away."""

    def __init__(self):
        self.body = None
        self.versions = itertools.count(1)
        self.writes = []
        self.away = False
        self.hangs = False
        self.events = []

    async def get(self, resource, namespace, name):
        await self._answer()
        return self.body

    async def create(self, resource, body):
        await self._answer()
        if resource is not LEASE:
            self.events.append(body)
            return body
        if self.body:
            raise ApiError(409, "AlreadyExists", "there is one")
        return self._keep(body)

    async def replace(self, resource, body):
        await self._answer()
        if self.body is None:
            raise ApiError(404, "NotFound", "there is none")
        if body["metadata"]["resourceVersion"] != self.body["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", "somebody was faster")
        return self._keep(body)

    async def _answer(self):
        await asyncio.sleep(60 if self.hangs else 0)
        if self.away:
            raise ApiError(0, "NoAnswer", "no answer")

    def _keep(self, body):
        version = str(next(self.versions))
        self.body = {
            **body,
            "metadata": {**body["metadata"], "resourceVersion": version, "uid": "u"},
        }
        self.writes.append(self.holder)
        return self.body

    @property
    def holder(self):
        return self.body["spec"]["holderIdentity"]


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def make(server):
    def make(identity, now=None, timing=QUICK):
        return Lease(
            kube=server,
            namespace="system",
            name="llm-operator",
            identity=identity,
            timing=timing,
            now=now or Clock(),
        )

    return make


async def within(seconds, work):
    return await asyncio.wait_for(work, seconds)


async def stays_out(lease, seconds=0.05):
    """Whether the candidate still follows after some looks."""
    task = asyncio.create_task(lease.acquire())
    done, _ = await asyncio.wait({task}, timeout=seconds)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return not done


async def test_the_first_leads_and_the_lease_says_so_in_its_standard_fields(make, server):
    lease = make(A)
    assert not lease.valid()
    await within(5, lease.acquire())
    assert lease.valid()
    spec = server.body["spec"]
    assert spec.keys() == {
        "holderIdentity",
        "leaseDurationSeconds",
        "acquireTime",
        "renewTime",
        "leaseTransitions",
    }
    assert (spec["holderIdentity"], spec["leaseDurationSeconds"]) == ("a", 15)
    assert spec["leaseTransitions"] == 0
    assert spec["acquireTime"] == spec["renewTime"]


async def test_a_follower_writes_nothing_as_long_as_there_is_a_leader(make, server):
    await within(5, make(A).acquire())
    written = list(server.writes)
    assert await stays_out(make(B))
    assert server.writes == written


@pytest.mark.parametrize("others_clock", ["2020-01-01T00:00:00.000000Z", "2120-01-01T00:00:00Z"])
async def test_the_leaders_wall_clock_counts_for_nothing(make, server, others_clock):
    await within(5, make(A).acquire())
    server.body["spec"]["renewTime"] = others_clock
    assert await stays_out(make(B))


async def test_a_record_unchanged_for_its_duration_may_be_taken(make, server):
    await within(5, make(A).acquire())
    clock = Clock()
    lease = make(B, clock)
    following = asyncio.create_task(lease.acquire())
    await asyncio.sleep(0.02)
    clock.time += 14.9
    await asyncio.sleep(0.02)
    assert not following.done()
    clock.time += 0.2
    await within(5, following)
    assert server.holder == "b"
    assert server.body["spec"]["leaseTransitions"] == 1


def test_every_change_of_the_record_starts_the_count_anew():
    sight = Sight()
    sight.see(Record(holder="a", duration=15, renewed="1"), now=0)
    assert not sight.may_be_taken(B, now=14)
    sight.see(Record(holder="a", duration=15, renewed="2"), now=14)
    assert not sight.may_be_taken(B, now=28)
    assert sight.may_be_taken(B, now=29)


def test_nothing_seen_is_no_ground_to_lead():
    assert not Sight().may_be_taken(A, now=1e9)


@pytest.mark.parametrize(
    ("identity", "holder", "may"),
    [
        (A, "", True),
        (A, "a", True),
        (A, "b", False),
        (Identity.new(pod="llm-operator-x", host="h"), "llm-operator-x_0badcafe", True),
        (Identity.new(pod="llm-operator-x", host="h"), "llm-operator-y_0badcafe", False),
        (Identity.new(pod="", host="h"), "h_0badcafe", False),
    ],
    ids=["nobody", "itself", "another", "its pod before", "another pod", "same host"],
)
def test_who_may_lead_at_once(identity, holder, may):
    sight = Sight()
    sight.see(Record(holder=holder), now=0)
    assert sight.may_be_taken(identity, now=0) is may


def test_no_two_processes_have_the_same_name():
    one, two = (Identity.new(pod="p", host="h") for _ in range(2))
    assert one.process != two.process


async def test_two_that_see_nobody_do_not_both_lead(make, server):
    await within(5, make(A).acquire())
    server.body["spec"]["holderIdentity"] = ""
    candidates = [make(Identity("", f"c{number}")) for number in range(5)]
    tasks = [asyncio.create_task(each.acquire()) for each in candidates]
    await asyncio.sleep(0.1)
    assert sum(each.valid() for each in candidates) == 1
    for task in tasks:
        task.cancel()


async def test_a_leader_renews(make, server):
    lease = make(A)
    await within(5, lease.acquire())
    acquired = server.body["spec"]["acquireTime"]
    task = asyncio.create_task(lease.hold())
    await asyncio.sleep(0.1)
    task.cancel()
    assert len(server.writes) > 2
    assert server.body["spec"]["acquireTime"] == acquired
    assert server.body["spec"]["renewTime"] > acquired


async def test_a_leader_stops_before_another_may_lead(make, server):
    clock = Clock()
    lease = make(A, clock)
    await within(5, lease.acquire())
    clock.time += 9.9
    assert lease.valid()
    clock.time += 0.2
    assert not lease.valid()
    with pytest.raises(LeaseLostError, match="could not be renewed for 10 s"):
        await within(5, lease.hold())


async def test_without_answers_a_leader_loses_the_lease_at_its_deadline(make, server, caplog):
    clock = Clock()
    lease = make(A, clock)
    await within(5, lease.acquire())
    server.away = True
    task = asyncio.create_task(lease.hold())
    await asyncio.sleep(0.02)
    assert not task.done()
    assert lease.trouble
    clock.time += 10
    with pytest.raises(LeaseLostError):
        await within(5, task)
    assert caplog.text.count("cannot renew") == 1


async def test_a_request_that_hangs_does_not_outlast_the_deadline(make, server):
    timing = Timing(renew=0.001, poll=0.001, request=60, deadline=0.05)
    lease = make(A, timing=timing, now=asyncio.get_running_loop().time)
    await within(5, lease.acquire())
    server.hangs = True
    with pytest.raises(LeaseLostError):
        await within(5, lease.hold())


async def test_an_outage_shorter_than_the_deadline_changes_nothing(make, server):
    lease = make(A)
    await within(5, lease.acquire())
    server.away = True
    task = asyncio.create_task(lease.hold())
    await asyncio.sleep(0.02)
    server.away = False
    before = len(server.writes)
    await asyncio.sleep(0.02)
    assert len(server.writes) > before
    assert not task.done()
    assert not lease.trouble
    task.cancel()


async def test_a_leader_that_was_replaced_notices_at_its_next_renewal(make, server):
    clock = Clock()
    lease = make(A)
    await within(5, lease.acquire())
    usurper = make(B, clock)
    taking = asyncio.create_task(usurper.acquire())
    await asyncio.sleep(0.02)
    clock.time += 15
    await within(5, taking)
    with pytest.raises(LeaseLostError, match="b leads instead"):
        await within(5, lease.hold())
    assert not lease.valid()
    assert server.holder == "b"


@pytest.mark.parametrize("change", ["edited", "deleted"])
async def test_a_lease_that_a_person_touched_is_kept(make, server, change):
    lease = make(A)
    await within(5, lease.acquire())
    if change == "deleted":
        server.body = None
    else:
        metadata = {**server.body["metadata"], "annotations": {"a": "b"}}
        server._keep({**server.body, "metadata": metadata})
    task = asyncio.create_task(lease.hold())
    await asyncio.sleep(0.05)
    assert not task.done()
    assert server.holder == "a"
    task.cancel()


async def test_what_is_given_back_can_be_taken_at_once(make, server):
    lease = make(A)
    await within(5, lease.acquire())
    await lease.release()
    assert not lease.valid()
    assert server.holder == ""
    await within(5, make(B).acquire())
    assert server.holder == "b"


async def test_a_renewal_that_arrives_late_does_not_keep_the_lease(make, server):
    lease = make(A)
    await within(5, lease.acquire())
    server._keep(server.body)
    await lease.release()
    assert server.holder == ""


async def test_nobody_gives_back_what_is_anothers(make, server):
    lease = make(A)
    await within(5, lease.acquire())
    server._keep({**server.body, "spec": {**server.body["spec"], "holderIdentity": "b"}})
    await lease.release()
    assert server.holder == "b"


async def test_an_api_server_that_is_away_does_not_keep_a_process_from_ending(make, server, caplog):
    lease = make(A)
    await within(5, lease.acquire())
    server.hangs = True
    await within(5, lease.release())
    assert "runs out by itself" in caplog.text


async def test_a_follower_that_cannot_ask_says_so_and_goes_on(make, server, caplog):
    server.away = True
    lease = make(A)
    task = asyncio.create_task(lease.acquire())
    await asyncio.sleep(0.02)
    assert "no answer" in lease.trouble
    assert caplog.text.count("cannot ask for the Lease system/llm-operator") == 1
    server.away = False
    await within(5, task)
    assert not lease.trouble


async def test_an_event_tells_of_the_new_leader(make, server):
    lease = make(A)
    await within(5, lease.acquire())
    await lease.announce()
    (event,) = server.events
    assert (event["reason"], event["message"]) == ("LeaderElection", "a became leader")
    assert event["involvedObject"]["uid"] == "u"
