"""What was said before: in the order of the conversation, and the user's own."""

import trio

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


async def test_text_that_is_hard_to_parse_costs_no_more_than_other_text(house):
    """Tokens without end, over which the parser would brood for minutes, are stored and found in pieces."""
    context = house.context()
    house.owner.execute("SET statement_timeout = '10s'")
    for hard in ("a_", "~/", "1_"):
        for _ in range(5):
            house.message(context, "user", hard * 16_000 + " needle")
    house.owner.execute("RESET statement_timeout")
    async with house.request(house.context(context.user_id)) as (request, _):
        with trio.fail_after(60):
            found = await search(request.database, "needle", run_id=request.context.run_id, limit=20)
            assert len(found) == 15
            assert await search(request.database, "a_" * 250, run_id=request.context.run_id, limit=20)


async def test_a_message_of_any_length_can_be_stored(house):
    """As many different words as an answer may have; those at its beginning are found."""
    context = house.context()
    house.message(context, "assistant", " ".join(f"w{number:07x}" for number in range(120_000)))
    async with house.request(house.context(context.user_id)) as (request, _):
        assert len(await search(request.database, "w0000007", run_id=request.context.run_id, limit=2)) == 1


async def test_a_snippet_shows_the_word_where_it_stands(house):
    """In a long message it is cut around it; where only the end matches, it is the beginning."""
    context = house.context()
    for before in (0, 50, 1_500, 30_000):
        house.message(context, "user", "padding " * before + "A Needle's eye" + " more" * 500)
    async with house.request(house.context(context.user_id)) as (request, _):
        found = await search(request.database, '-hay or "needle"', run_id=request.context.run_id, limit=9)
    snippets = [message.snippet for message in found]
    assert ["Needle" in snippet for snippet in snippets] == [False, True, True, True]
    assert [len(snippet) for snippet in snippets] == [300] * 4
    assert snippets[-1].startswith("A Needle's eye more")
