// A browser lets no page read its neighbours from disk, so hits of a search there come without their summaries.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
