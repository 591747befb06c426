// What is pasted into the search, a message of r1nb's, is searched for by its words, whole and in any order, without numbers
// and paths: so is any query of many words. By itself the theme would look for all that begins with "a", "is", …, and fail
// at an option like --nodes, or at some numbers. "r1nb:" says that only the page of messages is asked for: it has a tag.
const QUERY = 2, MANY = 4;                                 // a type of message to the theme's search; words

function query(text) {
  if (/^\s*["+]/.test(text)) return text;                  // operators of the search
  const prose = text.replace(/^\s*r1nb:( error:)?|\S*\/\S*/g, " "), printed = /^\s*r1nb:/.test(text);
  const words = prose.match(/\.?[\p{L}\p{N}_]+(?:\.[\p{L}\p{N}_]+)*/gu)?.filter((word) => /\p{L}.*\p{L}/u.test(word)) ?? [];
  if (words.length < (printed ? 1 : MANY)) return words.length ? text.replace(/(^|\s)(--+|\d+(?=\s|$))/g, "$1") : text;
  return [...new Set(words)].map((word) => `${word}^1`).concat(printed ? "+tags:message" : []).join(" ");
}

const send = Worker.prototype.postMessage;
Worker.prototype.postMessage = function (message, ...rest) {
  return send.call(this, message?.type === QUERY ? { ...message, data: query(message.data) } : message, ...rest);
};
