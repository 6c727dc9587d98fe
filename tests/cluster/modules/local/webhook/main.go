// Command webhook stands in for everything that takes Alertmanager's notifications, and shows what it got.
//
// POST /BOX puts a JSON document into the box of that name, GET /BOX returns the last ones as a JSON array, oldest
// first. What comes by SMTP is in the box `mail` (mail.go), what comes for WeChat Work in the box `wechat` (wechat.go).
package main

import (
	"encoding/json"
	"log"
	"net/http"
	"sync"
)

// kept is how many documents a box remembers; older ones are forgotten.
const kept = 200

// maxBody is the most bytes one notification may have.
const maxBody = 1 << 20

// inbox is what was received, by the name of the box.
type inbox struct {
	mu    sync.Mutex
	boxes map[string][]any
}

func (i *inbox) put(box string, document any) {
	i.mu.Lock()
	defer i.mu.Unlock()
	documents := append(i.boxes[box], document)
	i.boxes[box] = documents[max(0, len(documents)-kept):]
	log.Printf("%s: %s", box, document)
}

func (i *inbox) record(w http.ResponseWriter, r *http.Request) {
	var document json.RawMessage
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&document); err != nil {
		http.Error(w, "the body is not JSON: "+err.Error(), http.StatusBadRequest)
		return
	}
	i.put(r.PathValue("box"), document)
}

func (i *inbox) show(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	answer(w, append([]any{}, i.boxes[r.PathValue("box")]...))
}

// answer sends a value as JSON.
func answer(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(value); err != nil {
		log.Print(err)
	}
}

func main() {
	i := &inbox{boxes: map[string][]any{}}
	http.HandleFunc("POST /{box}", i.record)
	http.HandleFunc("GET /{box}", i.show)
	http.HandleFunc("GET /cgi-bin/gettoken", getToken)
	http.HandleFunc("POST /cgi-bin/message/send", i.send)
	go func() { log.Fatal(mailServer(i).ListenAndServe()) }()
	log.Fatal(http.ListenAndServe(":8080", nil))
}
