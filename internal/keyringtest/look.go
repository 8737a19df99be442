package keyringtest

// What tests read of a server.

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"example.com/keyring"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"github.com/hashicorp/raft"
)

// ProblemAbout returns the detail of a server's problem of that kind about another, or "".
func ProblemAbout(t testing.TB, s *Server, kind keyring.ProblemKind, about raft.ServerID) string {
	t.Helper()
	st, err := s.Keyring.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range st.Problems {
		if p.Kind == kind && p.Server == about {
			return p.Detail
		}
	}
	return ""
}

// KeyFiles returns the content of the key files on a disk, and of those set aside.
func KeyFiles(d *Disk) map[string]string {
	files := map[string]string{}
	for _, name := range d.Names() {
		if strings.Contains(name, ".nks.json") {
			files[name] = string(d.Bytes(name))
		}
	}
	return files
}

// StateOf is the state of a key as a server knows it, or "".
func StateOf(s *Server, id keyring.KeyID) keyring.State {
	for _, key := range s.Keyring.Keys() {
		if key.ID == id {
			return key.State
		}
	}
	return ""
}

// FilesOf are the names of files on a server's disk that are about a key.
func FilesOf(s *Server, id keyring.KeyID) (names []string) {
	for _, name := range s.Disk.Names() {
		if strings.HasPrefix(name, nks.FileName(id)) {
			names = append(names, name)
		}
	}
	return names
}

// Problems are those of that kind that the server's Status has.
func Problems(t testing.TB, s *Server, kind keyring.ProblemKind) (found []keyring.Problem) {
	t.Helper()
	st, err := s.Keyring.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range st.Problems {
		if p.Kind == kind {
			found = append(found, p)
		}
	}
	return found
}

// Follower is a server that does not lead.
func Follower(c *Cluster) *Server {
	leader := c.Leader()
	return c.Servers[(slices.Index(c.Servers, leader)+1)%len(c.Servers)]
}

// IsFetch reports whether an event is a request for keys that leaves the server.
func IsFetch(e Event, from raft.ServerID) bool {
	return e.Kind == "call" && e.Server.ID == from && strings.Contains(e.What, `"fetch"`)
}

// Ring is what an FSM has applied, from a snapshot of it.
func Ring(f *keyring.FSM) *meta.Ring {
	snapshot, err := meta.This.ReadSnapshot(bytes.NewReader(snapshotOf(f)))
	if err != nil {
		panic(err)
	}
	return snapshot.Ring
}

// section is what a server has applied, as text.
func section(s *Server) string { return string(snapshotOf(s.FSM)) }

func snapshotOf(f *keyring.FSM) []byte {
	var sink Sink
	snap, err := f.Snapshot()
	if err == nil {
		err = snap.Persist(&sink)
	}
	if err != nil {
		panic(err)
	}
	return sink.Buf.Bytes()
}

// SigningKey is the PKCS #8 DER of a key's private half, from the file on a server's disk.
func SigningKey(t testing.TB, s *Server, id keyring.KeyID) []byte {
	t.Helper()
	return material(t, s, id).Signing()
}

// RootKey is the 32 bytes of a root key, from the file on a server's disk.
func RootKey(t testing.TB, s *Server, id keyring.KeyID) []byte {
	t.Helper()
	return material(t, s, id).Root()[:]
}

func material(t testing.TB, s *Server, id keyring.KeyID) *nks.Material {
	t.Helper()
	f, err := nks.DecodeFile(s.Disk.Bytes(nks.FileName(id)))
	if err != nil {
		t.Fatal(err)
	}
	opened, err := kek.NewSet([]keyring.KEK{keyring.InlineKEK()}, nil).Decode(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	return opened.Material
}

// Entries is how many entries of the keyring's are in a server's raft log.
func Entries(t testing.TB, s *Server) int { return len(entries(t, s)) }

// LastEntry is the index of the last entry of the keyring's in a server's raft log, committed or not; zero if there is none.
func LastEntry(t testing.TB, s *Server) uint64 {
	if all := entries(t, s); len(all) > 0 {
		return all[len(all)-1]
	}
	return 0
}

// entries are the indexes of the keyring's entries in a server's raft log.
func entries(t testing.TB, s *Server) (all []uint64) {
	t.Helper()
	first, _ := s.log.InmemStore.FirstIndex()
	last, _ := s.log.InmemStore.LastIndex()
	for i := max(1, first); i <= last; i++ {
		var l raft.Log
		if err := s.log.GetLog(i, &l); err != nil {
			t.Fatal(err)
		}
		if string(l.Extensions) == Extensions {
			all = append(all, i)
		}
	}
	return all
}

// StatusOf is the status that a server gives.
func StatusOf(t testing.TB, s *Server) keyring.Status {
	t.Helper()
	st, err := s.Keyring.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st
}
