// The conversations, kept in this browser and nowhere else. Where it keeps nothing they live as long as the page.

const HEADS = "heads"; // an index that holds what a list shows, so that it can be read without the pictures

export class Library {
  /** A library; `lasting` says whether it outlives the page. */
  static async open() {
    try {
      return new Library(await openDatabase());
    } catch {
      return new Library(null);
    }
  }

  constructor(database) {
    this.database = database;
    this.memory = new Map();
  }

  get lasting() {
    return this.database !== null;
  }

  async get(id) {
    if (!this.lasting) return this.memory.get(id);
    return promised(this.#store("readonly").get(id));
  }

  async put(conversation) {
    if (!this.lasting) this.memory.set(conversation.id, conversation);
    else await promised(this.#store("readwrite").put(conversation));
  }

  async delete(id) {
    if (!this.lasting) this.memory.delete(id);
    else await promised(this.#store("readwrite").delete(id));
  }

  async clear() {
    this.memory.clear();
    if (this.lasting) await promised(this.#store("readwrite").clear());
  }

  /** {id, title, changed} of every conversation, the newest first. */
  async heads() {
    if (!this.lasting) return [...this.memory.values()].sort((one, other) => other.changed - one.changed);
    const found = [];
    const asked = this.#store("readonly").index(HEADS).openKeyCursor(null, "prev");
    return new Promise((resolve, reject) => {
      asked.onerror = () => reject(asked.error);
      asked.onsuccess = () => {
        const cursor = asked.result;
        if (!cursor) return resolve(found);
        const [changed, title] = cursor.key;
        found.push({ id: cursor.primaryKey, title, changed });
        cursor.continue();
      };
    });
  }

  #store(mode) {
    return this.database.transaction("conversations", mode).objectStore("conversations");
  }
}

function openDatabase() {
  const asked = indexedDB.open("qwench", 1);
  asked.onupgradeneeded = () => {
    const store = asked.result.createObjectStore("conversations", { keyPath: "id" });
    store.createIndex(HEADS, ["changed", "title"]);
  };
  return promised(asked);
}

function promised(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
