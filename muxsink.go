package keyring

import (
	"bytes"
	"io"

	"github.com/hashicorp/raft"
)

// persistApp writes the host's snapshot alone.
func (s fsmSnapshot) persistApp(sink raft.SnapshotSink) error {
	own := &appSink{SnapshotSink: sink, section: s.writeSection}
	if err := s.app.Persist(own); err != nil {
		return err
	}
	return own.pass() // if the host has left it to raft to close the sink
}

// appSink takes a host's snapshot that has no section of the keyring's before it. What a host writes is
// its own, or its users': if it begins as a section does, it gets one, an empty one, so that nobody
// takes it for one.
type appSink struct {
	raft.SnapshotSink
	section func(io.Writer) error
	held    []byte // the first bytes, until they can be told from a section
	passed  bool
}

// Write implements io.Writer.
func (s *appSink) Write(b []byte) (int, error) {
	if s.passed {
		return s.SnapshotSink.Write(b)
	}
	s.held = append(s.held, b...)
	if len(s.held) >= len(magic) {
		if err := s.pass(); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// pass hands on what is held.
func (s *appSink) pass() error {
	if s.passed {
		return nil
	}
	s.passed = true
	if bytes.HasPrefix(s.held, []byte(magic)) {
		if err := s.section(s.SnapshotSink); err != nil {
			return err
		}
	}
	if len(s.held) == 0 {
		return nil
	}
	_, err := s.SnapshotSink.Write(s.held)
	return err
}

// Close implements raft.SnapshotSink.
func (s *appSink) Close() error {
	if err := s.pass(); err != nil {
		return err // the host cancels
	}
	return s.SnapshotSink.Close()
}
