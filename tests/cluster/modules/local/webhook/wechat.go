package main

import (
	"encoding/json"
	"net/http"
	"strings"
)

// What the stand-in of WeChat Work's API knows: one company with one application. The real one, too, gives the same
// token again for as long as it is valid.
const (
	corpID      = "local-corp"
	corpSecret  = "local-corp-secret"
	agentID     = "1000002"
	accessToken = "local-access-token"
)

// maxContent is the most bytes a text may have; WeChat Work cuts off the rest.
const maxContent = 2048

// result is how the API answers; whatever is wrong, its status is 200.
type result struct {
	Code        int    `json:"errcode"`
	Message     string `json:"errmsg"`
	AccessToken string `json:"access_token,omitempty"`
	ExpiresIn   int    `json:"expires_in,omitempty"`
	MessageID   string `json:"msgid,omitempty"`
}

// text is a message to send, as the box `wechat` shows it.
type text struct {
	ToUser  string      `json:"touser"`
	ToParty string      `json:"toparty"`
	ToTag   string      `json:"totag"`
	AgentID json.Number `json:"agentid"`
	Type    string      `json:"msgtype"`
	Text    struct {
		Content string `json:"content"`
	} `json:"text"`
}

func getToken(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	switch {
	case query.Get("corpid") != corpID:
		answer(w, result{Code: 40013, Message: "invalid corpid"})
	case query.Get("corpsecret") != corpSecret:
		answer(w, result{Code: 40001, Message: "invalid credential"})
	default:
		answer(w, result{Message: "ok", AccessToken: accessToken, ExpiresIn: 7200})
	}
}

func (i *inbox) send(w http.ResponseWriter, r *http.Request) {
	if token := r.URL.Query().Get("access_token"); token == "" {
		answer(w, result{Code: 41001, Message: "access_token missing"})
		return
	} else if token != accessToken {
		answer(w, result{Code: 40014, Message: "invalid access_token"})
		return
	}
	var message text
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&message); err != nil {
		answer(w, result{Code: 47001, Message: "data format error, " + err.Error()})
		return
	}
	content := &message.Text.Content
	switch {
	case message.AgentID.String() != agentID:
		answer(w, result{Code: 40056, Message: "invalid agentid"})
	case message.Type != "text":
		answer(w, result{Code: 40008, Message: "invalid message type"})
	case message.ToUser+message.ToParty+message.ToTag == "":
		answer(w, result{Code: 81013, Message: "user & party & tag all invalid"})
	case *content == "":
		answer(w, result{Code: 44004, Message: "empty content"})
	default:
		*content = strings.ToValidUTF8((*content)[:min(len(*content), maxContent)], "")
		i.put("wechat", message)
		answer(w, result{Message: "ok", MessageID: "1"})
	}
}
