"""aio-pika doing the least it can: a callback that counts, and one ack for each 500 messages."""

import asyncio
import os

import aio_pika
import uvloop

from benchmarks.harness import meter

seen = done = 0


async def on_message(message: aio_pika.abc.AbstractIncomingMessage) -> None:
    """Count, and ack every 500th with all before it."""
    global seen, done  # noqa: PLW0603 - as the documentation's examples are written
    seen += 1
    if seen % 500 == 0:
        await message.ack(multiple=True)
        done = seen


async def main() -> None:
    """Consume until killed."""
    connection = await aio_pika.connect_robust(os.environ["BENCH_AMQP_URL"])
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=int(os.environ["BENCH_PREFETCH"]))
        queue = await channel.get_queue(os.environ["BENCH_QUEUE"])
        await queue.consume(on_message)
        await asyncio.Future()


if __name__ == "__main__":
    meter.watch(lambda: (done, 0))
    uvloop.run(main())
