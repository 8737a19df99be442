package peer_test

import (
	"errors"
	"io"
	"net"
	"testing"

	"example.com/keyring/internal/peer"
)

// TestClosedConnectionEndsItsRequests as if the other end had closed it, which raft does not log as an error; in the midst of a request, or
// of answers, it is an error.
func TestClosedConnectionEndsItsRequests(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for name, test := range map[string]struct {
		bound func(net.Conn) net.Conn
		sent  []byte
		ended bool
	}{
		"between requests": {peer.RaftRequests, nil, true},
		"in a request":     {peer.RaftRequests, []byte{0}, false},
		"of answers":       {peer.RaftAnswers, nil, false},
	} {
		there, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		here, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		r := test.bound(here)
		if len(test.sent) > 0 {
			if _, err := there.Write(test.sent); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(r, make([]byte, len(test.sent))); err != nil {
				t.Fatal(err)
			}
		}
		if err := here.Close(); err != nil {
			t.Fatal(err)
		}
		_, err = r.Read(make([]byte, 1))
		if (err == io.EOF) != test.ended || !test.ended && !errors.Is(err, net.ErrClosed) { //nolint:errorlint // raft compares so
			t.Errorf("%s: %v", name, err)
		}
		there.Close()
	}
}
