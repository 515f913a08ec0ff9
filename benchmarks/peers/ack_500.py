"""The least that aio-pika can do: a callback that counts, and one ack per 500 messages."""

import asyncio
import os

import aio_pika
import uvloop

from benchmarks.harness import meter

received = done = 0


async def on_message(message: aio_pika.abc.AbstractIncomingMessage) -> None:
    """Count, and acknowledge every 500th message with all before it."""
    global received, done  # noqa: PLW0603 - as the documentation's examples are written
    received += 1
    if received % 500 == 0:
        await message.ack(multiple=True)
        done = received


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
