"""Everyday tools as tables: what they are called, their parameters, how people ask for them, what comes back.

`names` and the parameter names have several spellings, so that the schema must be read and not remembered.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Everyday:
    """One everyday tool. `params` maps our word for a parameter to its possible names and kind of value."""

    names: tuple[str, ...]
    describe: tuple[str, ...]
    params: dict[str, tuple[tuple[str, ...], str]]
    asks: tuple[str, ...]
    result: str = "ok"


CITY = (("city", "location", "place", "town", "city_name"), "city")
EVERYDAY: tuple[Everyday, ...] = (
    Everyday(("get_weather", "weather", "get_current_weather", "fetch_weather", "weather_lookup", "check_weather", "getWeather"),
             ("Get the weather in a city.", "Get the current weather.", "Weather for a place.", "Returns the weather.", "Get current weather for a city"),
             {"city": CITY},
             ("What is the weather in {city}?", "How is the weather in {city}?", "What's the weather like in {city}?", "Weather in {city}?", "Tell me the weather in {city}.",
              "Is it raining in {city}?", "Is it cold in {city}?", "Get the weather for {city}.", "How warm is it in {city}?", "weather {city}", "What is the weather in {city} today?"),
             "weather"),
    Everyday(("get_forecast", "weather_forecast", "forecast"), ("Get the forecast for some days.", "Weather forecast."),
             {"city": CITY, "days": (("days", "num_days", "day_count"), "integer")},
             ("What will the weather be in {city} for {days} days?", "Give me a {days} day forecast for {city}.", "Forecast for {city}, {days} days."), "weather"),
    Everyday(("get_time", "current_time", "time_in", "get_local_time", "clock"), ("Get the time in a city.", "Local time."), {"city": CITY},
             ("What time is it in {city}?", "Tell me the time in {city}.", "Time in {city}?", "How late is it in {city}?"), "time"),
    Everyday(("set_timer", "start_timer", "timer", "create_timer"), ("Set a timer.", "Start a countdown."), {"minutes": (("minutes", "duration", "mins", "length"), "integer")},
             ("Set a timer for {minutes} minutes.", "Start a {minutes} minute timer.", "Timer for {minutes} minutes please.", "Wake me in {minutes} minutes.")),
    Everyday(("set_alarm", "create_alarm", "alarm"), ("Set an alarm.", "Create an alarm at a time."), {"time": (("time", "at", "when", "hour"), "clock")},
             ("Set an alarm for {time}.", "Wake me at {time}.", "Please set the alarm to {time}.", "Alarm at {time}.")),
    Everyday(("send_message", "send_text", "message", "text_person", "send_sms"), ("Send a message to a person.", "Send a text."),
             {"to": (("to", "recipient", "person", "name", "contact"), "name"), "text": (("text", "message", "body", "content"), "phrase")},
             ('Send "{text}" to {to}.', "Tell {to}: {text}", 'Write {to} a message: "{text}"', 'Message {to} "{text}".')),
    Everyday(("play_music", "play_song", "play", "start_music"), ("Play music.", "Play a song by name."), {"song": (("song", "title", "track", "query"), "phrase")},
             ('Play "{song}".', "Play the song {song}.", "I want to hear {song}.", 'Put on "{song}".')),
    Everyday(("search", "web_search", "search_web", "find", "lookup"), ("Search the web.", "Search for something."), {"query": (("query", "q", "text", "keywords"), "phrase")},
             ("Search for {query}.", "Look up {query}.", 'Search the web for "{query}".', "Find {query} on the web.")),
    Everyday(("translate", "translate_text", "get_translation"), ("Translate text.", "Translate into a language."),
             {"text": (("text", "phrase", "input"), "phrase"), "language": (("language", "to", "target", "target_language"), "language")},
             ('Translate "{text}" into {language}.', "What is {text} in {language}?", 'How do you say "{text}" in {language}?')),
    Everyday(("convert_currency", "exchange", "currency_convert"), ("Convert money.", "Convert an amount."),
             {"amount": (("amount", "value", "sum"), "integer"), "from": (("from", "source", "from_currency"), "currency"), "to": (("to", "target", "to_currency"), "currency")},
             ("Convert {amount} {from} to {to}.", "How much is {amount} {from} in {to}?", "Change {amount} {from} into {to}."), "value"),
    Everyday(("get_stock_price", "stock_price", "get_price", "quote"), ("Get a stock price.", "Price of a share."), {"symbol": (("symbol", "ticker", "stock"), "symbol")},
             ("What is the price of {symbol}?", "Stock price of {symbol}?", "How much is a share of {symbol}?", "Get the stock price for {symbol}."), "value"),
    Everyday(("turn_on_light", "light_on", "switch_on_light", "lights_on"), ("Turn on a light.", "Switch on the light in a room."), {"room": (("room", "where", "location"), "room")},
             ("Turn on the light in the {room}.", "Light on in the {room}.", "Switch on the {room} light.", "It is dark in the {room}, turn on the light.")),
    Everyday(("set_temperature", "heat", "thermostat", "set_heating"), ("Set the temperature of a room.",),
             {"room": (("room", "where", "zone"), "room"), "degrees": (("degrees", "temperature", "value", "target"), "integer")},
             ("Set the {room} to {degrees} degrees.", "Heat the {room} to {degrees} degrees.", "Make it {degrees} degrees in the {room}.")),
    Everyday(("book_table", "reserve_table", "make_reservation"), ("Book a table.", "Reserve a table in a restaurant."),
             {"people": (("people", "guests", "party_size", "persons"), "integer"), "time": (("time", "at", "when"), "clock")},
             ("Book a table for {people} people at {time}.", "Reserve a table at {time} for {people}.", "I need a table for {people} at {time}.")),
    Everyday(("book_flight", "find_flight", "search_flights"), ("Find a flight.", "Book a flight between cities."),
             {"from": (("from", "origin", "from_city", "departure"), "city"), "to": (("to", "destination", "to_city", "arrival"), "city")},
             ("Book a flight from {from} to {to}.", "Find flights from {from} to {to}.", "I want to fly from {from} to {to}.", "Fly me to {to} from {from}.")),
    Everyday(("get_distance", "distance", "how_far"), ("Distance between two places.",),
             {"from": (("from", "start", "a", "origin"), "city"), "to": (("to", "end", "b", "destination"), "city")},
             ("How far is it from {from} to {to}?", "What is the distance from {from} to {to}?", "Distance {from} to {to}?"), "value"),
    Everyday(("add_to_list", "add_item", "shopping_add", "put_on_list"), ("Add an item to the shopping list.",),
             {"item": (("item", "thing", "product", "name"), "thing"), "count": (("count", "quantity", "amount", "number"), "integer")},
             ("Put {count} {item} on my list.", "Add {count} {item} to the shopping list.", "I need {count} {item} on the list.")),
    Everyday(("read_file", "open_file", "cat_file", "get_file", "view"), ("Read a file.", "Show the content of a file."), {"path": (("path", "file", "filename", "file_path"), "path")},
             ("Read {path}.", "Show me the file {path}.", "Open {path}.", "What is in {path}?")),
    Everyday(("write_file", "create_file", "save_file"), ("Write a file.", "Write text to a file."),
             {"path": (("path", "file", "filename", "file_path"), "path"), "content": (("content", "text", "data"), "phrase")},
             ('Write "{content}" to {path}.', 'Create {path} with "{content}".', 'Save "{content}" in {path}.')),
    Everyday(("delete_file", "remove_file", "rm"), ("Delete a file.",), {"path": (("path", "file", "filename"), "path")},
             ("Delete {path}.", "Remove the file {path}.", "Please delete {path}.")),
    Everyday(("add", "add_numbers", "sum_numbers", "calculator_add", "plus"), ("Add two numbers.",), {"a": (("a", "x", "first", "left"), "integer"), "b": (("b", "y", "second", "right"), "integer")},
             ("Add {a} and {b}.", "What is {a} plus {b}?", "Use the tool to add {a} and {b}.", "What is {a} + {b}?"), "value"),
    Everyday(("create_event", "add_event", "schedule_meeting", "new_event"), ("Create a calendar event.",),
             {"title": (("title", "name", "subject"), "phrase"), "day": (("day", "date", "when"), "day")},
             ('Create an event "{title}" on {day}.', "Schedule {title} on {day}.", 'Put "{title}" on {day}.')),
    Everyday(("find_recipe", "get_recipe", "recipe_search"), ("Find a recipe.",), {"dish": (("dish", "food", "meal", "query"), "food")},
             ("Find a recipe for {dish}.", "How do I cook {dish}?", "I want to make {dish}.")),
    Everyday(("get_user", "find_user", "user_info", "load_user"), ("Get a user by id.",), {"id": (("id", "user_id", "number"), "integer")},
             ("Get user {id}.", "Who is user {id}?", "Show me the user with id {id}."), "value"),
    Everyday(("run_command", "shell", "execute", "bash"), ("Run a shell command.",), {"command": (("command", "cmd", "code"), "command")},
             ("Run {command}", "Execute `{command}`.", "Run the command {command}")),
)  # fmt: skip
LANGUAGES = "French German Spanish Italian Dutch Polish Greek Latin Japanese Chinese Korean Swedish".split()
CURRENCIES = "USD EUR GBP JPY CHF CAD dollars euros pounds yen francs".split()
SYMBOLS = "AAPL MSFT GOOG AMZN TSLA NVDA META IBM INTC ORCL".split()
ROOMS = "kitchen bedroom bathroom garage office hall cellar attic study garden".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday tomorrow today".split()
COMMANDS = (
    "ls {w}", "ls -la", "pwd", "git status", "git log {w}", "make {w}", "cat {w}.txt", "python {w}.py", "df -h", "whoami",
    "echo {w}", "cd {w}", "mkdir {w}", "rm {w}.log", "grep {w} {v}.csv", "cp {w}.md {v}.md", "pip install {w}",
)  # fmt: skip
SKIES = "sunny cloudy rainy snowy windy foggy clear stormy".split()
