package peer

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"time"
)

// Session makes calls over one connection, one after the other, for messages that are bound to that connection. It
// is not safe for concurrent use.
type Session struct {
	conn *Conn
	left *io.LimitedReader // of conn: what an answer may have still
	in   *bufio.Reader     // of left
}

// maxSessionAnswer is how much an answer may have on the wire, headers and all: http.ReadResponse has no bound of its own.
const maxSessionAnswer = maxHeader + 2*MaxMessage

// Session dials a server, as Dial does.
func (d *Dialer) Session(ctx context.Context, server, addr string) (*Session, error) {
	c, err := d.Dial(ctx, server, addr, ALPNPeer)
	if err != nil {
		return nil, err
	}
	left := &io.LimitedReader{R: c}
	return &Session{c, left, bufio.NewReader(left)}, nil
}

// Conn returns the connection, to look at.
func (s *Session) Conn() *Conn { return s.conn }

// Call is as Client.Call. After an error that is not a *Refusal the session can no longer be used.
func (s *Session) Call(ctx context.Context, path string, body []byte) ([]byte, error) {
	stop := context.AfterFunc(ctx, func() { cutOff(s.conn) })
	defer stop()
	b, err := s.call(ctx, path, body)
	if err != nil && over(ctx) != nil {
		err = over(ctx)
	}
	if err != nil {
		return nil, callError(path, s.conn.Identity().ID, err)
	}
	return b, nil
}

func (s *Session) call(ctx context.Context, path string, body []byte) ([]byte, error) {
	req, err := newCall(ctx, "server", path, body)
	if err != nil {
		return nil, err
	}
	if end, ok := ctx.Deadline(); ok {
		s.conn.SetDeadline(end)
		defer s.conn.SetDeadline(time.Time{})
	}
	if err := req.Write(s.conn); err != nil {
		return nil, err
	}
	s.left.N = maxSessionAnswer
	resp, err := http.ReadResponse(s.in, req)
	if err != nil {
		return nil, err
	}
	return readAnswer(resp)
}

// Close closes the connection.
func (s *Session) Close() error {
	cutOff(s.conn)
	return s.conn.Close()
}
