// Command webhook receives Alertmanager's notifications and shows what it got.
//
// POST /alerts records a notification, GET /alerts returns the last ones as a JSON array, oldest first.
package main

import (
	"encoding/json"
	"log"
	"net/http"
	"sync"
)

// kept is how many notifications are remembered; older ones are forgotten.
const kept = 200

// maxBody is the most bytes one notification may have.
const maxBody = 1 << 20

type inbox struct {
	mu            sync.Mutex
	notifications []json.RawMessage
}

func (i *inbox) record(w http.ResponseWriter, r *http.Request) {
	var n json.RawMessage
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&n); err != nil {
		http.Error(w, "the body is not JSON: "+err.Error(), http.StatusBadRequest)
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.notifications = append(i.notifications, n)
	if extra := len(i.notifications) - kept; extra > 0 {
		i.notifications = i.notifications[extra:]
	}
	log.Printf("notification: %s", n)
}

func (i *inbox) show(w http.ResponseWriter, _ *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(append([]json.RawMessage{}, i.notifications...)); err != nil {
		log.Print(err)
	}
}

func main() {
	i := &inbox{}
	http.HandleFunc("POST /alerts", i.record)
	http.HandleFunc("GET /alerts", i.show)
	log.Fatal(http.ListenAndServe(":8080", nil))
}
