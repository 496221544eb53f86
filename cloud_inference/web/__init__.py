"""The web page, served to browsers: `server` wires it.

auth      who is looking: a token in a cookie, the API's own scopes, requests of other sites refused
state     what they may know, from the API with their own token: results, devices
live      what they may see, from the hub: the open chain of a camera, shared by all who look at it
stills    the same as JPEG, for browsers that cannot decode video
viewer    one browser: what is on its way there, and dropped when the browser is slow
history   stored results for the timeline, and drawing
forms     protobuf as JSON, and what a browser may send
static/   the page itself: plain HTML, CSS and ES modules, nothing from elsewhere
"""
