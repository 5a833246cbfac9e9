"""What was said before: in the order of the conversation, and the user's own."""

from app.store.history import conversation_before, search


async def read(request, limit=50):
    context = request.context
    messages = await conversation_before(
        request.database, thread_id=context.thread_id, run_id=context.run_id, limit=limit
    )
    return [(message.role, message.content) for message in messages]


async def test_the_order_is_that_of_the_conversation(house):
    """A message that waited in the queue stands before the answer it follows; each run still reads in order."""
    runs = [house.context()]
    runs += [house.context(runs[0].user_id, runs[0].thread_id) for _ in range(2)]
    for number, run in enumerate(runs):
        house.message(run, "user", f"question {number}")
    house.message(runs[0], "assistant", "answer 0")
    async with house.request(runs[0]) as (request, _):
        assert await read(request) == []
    async with house.request(runs[1]) as (request, _):
        assert await read(request) == [("user", "question 0"), ("assistant", "answer 0")]
    house.message(runs[1], "assistant", "answer 1")
    everything = [
        ("user", "question 0"),
        ("assistant", "answer 0"),
        ("user", "question 1"),
        ("assistant", "answer 1"),
    ]
    async with house.request(runs[2]) as (request, _):
        assert await read(request) == everything
        assert await read(request, limit=3) == everything[1:]
        assert await read(request, limit=0) == []


async def test_a_child_operation_reads_the_same(house):
    """An operation inside a run is asked by the run that the user knows."""
    context = house.context()
    house.message(context, "user", "whale")
    async with house.request(context.child("research")) as (request, _):
        assert await read(request) == []
        assert await search(request.database, "whale", run_id=request.context.run_id, limit=5) == ()


async def test_other_threads_and_other_users_are_not_there(house):
    """Neither a thread of one's own nor of somebody else's is read along."""
    mine, theirs = house.context(), house.context()
    for context in (mine, theirs, house.context(mine.user_id)):
        house.message(context, "user", "hello")
    async with house.request(house.context(mine.user_id, mine.thread_id)) as (request, _):
        assert await read(request) == [("user", "hello")]
    async with house.request(house.context(mine.user_id, theirs.thread_id)) as (request, _):
        assert await read(request) == []


async def test_search_finds_words_newest_first(house):
    """All words must occur; quotes, minus and or mean what they mean on the web; the run that asks is left out."""
    context = house.context()
    for content in ("a blue whale", "a blue car", "whale, blue one", "BLUE and whale " + "padding " * 5000):
        house.message(context, "user", content)
    asking = house.context(context.user_id)
    house.message(asking, "user", "search blue whale")

    async with house.request(asking) as (request, _):

        async def snippets(query, limit=10):
            found = await search(request.database, query, run_id=asking.run_id, limit=limit)
            return [message.snippet[:20].strip() for message in found]

        assert await snippets("blue whale") == ["BLUE and whale paddi", "whale, blue one", "a blue whale"]
        assert await snippets("blue whale", limit=1) == ["BLUE and whale paddi"]
        assert await snippets('"blue whale"') == ["a blue whale"]
        assert await snippets("blue -whale") == ["a blue car"]
        assert await snippets("car or one") == ["whale, blue one", "a blue car"]
        assert await snippets("Blau") == []
        for odd in ("", "   ", "'", '"', "\\", "()&|!:*", "-", "or or or", "\u0000x"[1:], "%"):
            assert isinstance(await snippets(odd), list)
