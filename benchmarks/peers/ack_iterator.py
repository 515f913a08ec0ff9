"""aio-pika as in the first example of its quick start: an iterator, a prefetch of 10, an ack for each message."""

import os

import aio_pika
import uvloop

from benchmarks.harness import meter

done = 0


async def main() -> None:
    """Consume until killed."""
    global done  # noqa: PLW0603 - as the documentation's examples are written
    connection = await aio_pika.connect_robust(os.environ["BENCH_AMQP_URL"])
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=10)
        queue = await channel.get_queue(os.environ["BENCH_QUEUE"])
        async with queue.iterator() as messages:
            async for message in messages:
                async with message.process():
                    done += 1


if __name__ == "__main__":
    meter.watch(lambda: (done, 0))
    uvloop.run(main())
