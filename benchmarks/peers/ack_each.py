"""aio-pika as its quick start recommends for many messages at once: callbacks, a prefetch of 100, an ack for each."""

import asyncio
import os

import aio_pika
import uvloop

from benchmarks.harness import meter

done = 0


async def process_message(message: aio_pika.abc.AbstractIncomingMessage) -> None:
    """Acknowledge the message."""
    global done  # noqa: PLW0603 - as the documentation's examples are written
    async with message.process():
        done += 1


async def main() -> None:
    """Consume until killed."""
    connection = await aio_pika.connect_robust(os.environ["BENCH_AMQP_URL"])
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=100)
        queue = await channel.get_queue(os.environ["BENCH_QUEUE"])
        await queue.consume(process_message)
        await asyncio.Future()


if __name__ == "__main__":
    meter.watch(lambda: (done, 0))
    uvloop.run(main())
