"""The bare round trip with the same libraries: consume a message, commit one row, publish a message, acknowledge."""

import asyncio
import os

import aio_pika
import asyncpg
import uvloop

from benchmarks.harness import meter

CONCURRENCY = 20
done = 0


async def main() -> None:
    """Consume and publish until killed."""
    pool = await asyncpg.create_pool(os.environ["BENCH_DATABASE_URL"], min_size=CONCURRENCY, max_size=CONCURRENCY)
    connection = await aio_pika.connect_robust(os.environ["BENCH_AMQP_URL"])
    async with connection, pool:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=CONCURRENCY)
        queue = await channel.get_queue(os.environ["BENCH_QUEUE"])
        exchange = await channel.get_exchange(os.environ["BENCH_EVENTS"], ensure=False)

        async def on_message(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            global done  # noqa: PLW0603 - as the documentation's examples are written
            async with message.process():
                await pool.execute("INSERT INTO roundtrips (body) VALUES ($1)", message.body.decode())
                event = aio_pika.Message(message.body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
                await exchange.publish(event, "task.updated")
                done += 1

        await queue.consume(on_message)
        await asyncio.Future()


if __name__ == "__main__":
    meter.watch(lambda: (done, done))
    uvloop.run(main())
