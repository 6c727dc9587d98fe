package main

import (
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

// Who may send mail.
const (
	mailUser     = "alerts"
	mailPassword = "local-mail-password"
)

// letter is a mail as the box `mail` shows it.
type letter struct {
	From    string   `json:"from"`
	To      []string `json:"to"`
	Subject string   `json:"subject"`
	Text    string   `json:"text"`
	HTML    string   `json:"html"`
}

// mailServer takes mail on port 2525 from whoever knows user and password. It has no TLS, and so it offers AUTH LOGIN
// only: Go's client, which is Alertmanager's, refuses to send AUTH PLAIN over a connection that is not encrypted.
func mailServer(i *inbox) *smtp.Server {
	server := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) {
		return &session{inbox: i}, nil
	}))
	server.Addr = ":2525"
	server.AllowInsecureAuth = true
	server.MaxMessageBytes = maxBody
	server.ReadTimeout = 30 * time.Second
	server.WriteTimeout = 30 * time.Second
	return server
}

// session is one connection.
type session struct {
	inbox    *inbox
	loggedIn bool
	letter   letter
}

func (s *session) AuthMechanisms() []string { return []string{sasl.Login} }

func (s *session) Auth(string) (sasl.Server, error) { return &login{session: s}, nil }

func (s *session) Mail(from string, _ *smtp.MailOptions) error {
	if !s.loggedIn {
		return smtp.ErrAuthRequired
	}
	s.letter.From = from
	return nil
}

func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	s.letter.To = append(s.letter.To, to)
	return nil
}

func (s *session) Data(r io.Reader) error {
	if err := s.letter.read(r); err != nil {
		return &smtp.SMTPError{Code: 554, EnhancedCode: smtp.EnhancedCode{5, 6, 0}, Message: err.Error()}
	}
	s.inbox.put("mail", s.letter)
	return nil
}

func (s *session) Reset() { s.letter = letter{} }

func (s *session) Logout() error { return nil }

// read takes subject and parts out of a multipart message.
func (l *letter) read(r io.Reader) error {
	message, err := mail.ReadMessage(r)
	if err != nil {
		return err
	}
	if l.Subject, err = new(mime.WordDecoder).DecodeHeader(message.Header.Get("Subject")); err != nil {
		return err
	}
	_, parameters, err := mime.ParseMediaType(message.Header.Get("Content-Type"))
	if err != nil {
		return err
	}
	parts := multipart.NewReader(message.Body, parameters["boundary"])
	for {
		// Quoted-printable is decoded by the reader of parts.
		part, err := parts.NextPart()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		body, err := io.ReadAll(part)
		if err != nil {
			return err
		}
		switch kind, _, _ := mime.ParseMediaType(part.Header.Get("Content-Type")); kind {
		case "text/plain":
			l.Text = string(body)
		case "text/html":
			l.HTML = string(body)
		}
	}
}

// login is the server's side of AUTH LOGIN, which go-sasl has for clients only.
type login struct {
	session *session
	user    *string
}

func (l *login) Next(response []byte) ([]byte, bool, error) {
	switch {
	case response == nil:
		return []byte("Username:"), false, nil
	case l.user == nil:
		user := string(response)
		l.user = &user
		return []byte("Password:"), false, nil
	case *l.user != mailUser || string(response) != mailPassword:
		return nil, false, smtp.ErrAuthFailed
	default:
		l.session.loggedIn = true
		return nil, true, nil
	}
}
