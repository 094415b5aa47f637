"""One FastAPI endpoint under load; separate from `apps`, which have to run without FastAPI."""

from fastapi import FastAPI
from pydantic import BaseModel


class Item(BaseModel):
    item_id: int
    name: str


api = FastAPI()


@api.get("/items/{item_id}")
async def read_item(item_id: int) -> Item:
    return Item(item_id=item_id, name="Hello, world!")
