package raftwire_test

import (
	"errors"
	"strings"
	"testing"

	"example.com/keyring/internal/bounded/boundedtest"
	"example.com/keyring/internal/raftwire"
	"github.com/hashicorp/raft"
)

func voter(id string) raft.Server {
	return raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(id + ":1")}
}

func configuration(servers ...raft.Server) []byte {
	return raft.EncodeConfiguration(raft.Configuration{Servers: servers})
}

// good is what a leader sends after entry 4 of term 2, in term 3.
func good() *raft.AppendEntriesRequest {
	return &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: []byte("s1"), Addr: []byte("s1:1")},
		Term:      3, PrevLogEntry: 4, PrevLogTerm: 2, LeaderCommitIndex: 5,
		Entries: []*raft.Log{
			{Index: 5, Term: 2, Type: raft.LogCommand, Data: []byte("x")}, {Index: 6, Term: 3, Type: raft.LogNoop},
			{Index: 7, Term: 3, Type: raft.LogConfiguration, Data: configuration(voter("s1"), voter("s2"))},
			{Index: 8, Term: 3, Type: raft.LogBarrier},
		},
	}
}

func goodSnapshot() *raft.InstallSnapshotRequest {
	return &raft.InstallSnapshotRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: []byte("s1"), Addr: []byte("s1:1")}, SnapshotVersion: 1,
		Term: 3, LastLogIndex: 9, LastLogTerm: 2, Configuration: configuration(voter("s1")), ConfigurationIndex: 7, Size: 10,
	}
}

// at is what a server knows in that term, whose log is committed up to commit, with the terms of its entries.
func at(term, commit uint64, terms map[uint64]uint64) raftwire.View {
	return raftwire.View{Term: term, Commit: commit, TermAt: func(i uint64) (uint64, bool) { t, ok := terms[i]; return t, ok }}
}

// checkCase is a request, and whether raft may have it.
type checkCase struct {
	request any
	ok      bool
}

// entries is a good request for entries, changed.
func entries(change func(*raft.AppendEntriesRequest)) any { q := good(); change(q); return q }

func entryCases() map[string]checkCase {
	return map[string]checkCase{
		"entries":   {good(), true},
		"heartbeat": {&raft.AppendEntriesRequest{Term: 3}, true},
		"first entry": {entries(func(q *raft.AppendEntriesRequest) {
			q.PrevLogEntry, q.PrevLogTerm = 0, 0
			q.Entries = q.Entries[:1]
			q.Entries[0].Index = 1
			q.Entries[0].Term = 1
		}), true},
		"final again": {entries(func(q *raft.AppendEntriesRequest) {
			q.PrevLogEntry = 2
			q.Entries = []*raft.Log{{Index: 3, Term: 2, Type: raft.LogNoop}}
		}), true},
		"final changed": {entries(func(q *raft.AppendEntriesRequest) {
			q.PrevLogEntry = 2
			q.Entries = []*raft.Log{{Index: 3, Term: 3, Type: raft.LogNoop}}
		}), false},
		"no entry":   {entries(func(q *raft.AppendEntriesRequest) { q.Entries[1] = nil }), false},
		"gap":        {entries(func(q *raft.AppendEntriesRequest) { q.Entries[0].Index = 1 << 40 }), false},
		"gap within": {entries(func(q *raft.AppendEntriesRequest) { q.Entries[3].Index = 9 }), false},
		"gap, all":   {entries(func(q *raft.AppendEntriesRequest) { q.PrevLogEntry = 0; q.PrevLogTerm = 0 }), false},
		"overflow":   {entries(func(q *raft.AppendEntriesRequest) { q.PrevLogEntry = 1<<64 - 1; q.Entries[0].Index = 0 }), false},
		"type":       {entries(func(q *raft.AppendEntriesRequest) { q.Entries[0].Type = 6 }), false},
		"old type":   {entries(func(q *raft.AppendEntriesRequest) { q.Entries[0].Type = raft.LogAddPeerDeprecated }), false},
		"term 0":     {entries(func(q *raft.AppendEntriesRequest) { q.PrevLogTerm = 0; q.Entries[0].Term = 0 }), false},
		"term back":  {entries(func(q *raft.AppendEntriesRequest) { q.Entries[3].Term = 2 }), false},
		"term ahead": {entries(func(q *raft.AppendEntriesRequest) { q.Entries[3].Term = 4 }), false},
		"prev ahead": {entries(func(q *raft.AppendEntriesRequest) { q.PrevLogTerm = 4 }), false},
	}
}

func configurationCases() map[string]checkCase {
	config := func(b []byte) any { return entries(func(q *raft.AppendEntriesRequest) { q.Entries[2].Data = b }) }
	nonvoter := voter("s3")
	nonvoter.Suffrage = raft.Nonvoter
	unknown := voter("s3")
	unknown.Suffrage = 7
	return map[string]checkCase{
		"nonvoter":   {config(configuration(voter("s1"), nonvoter)), true},
		"garbage":    {config([]byte("garbage")), false},
		"empty":      {config(nil), false},
		"nobody":     {config(configuration()), false},
		"no voter":   {config(configuration(nonvoter)), false},
		"suffrage":   {config(configuration(voter("s1"), unknown)), false},
		"twice":      {config(configuration(voter("s1"), voter("s1"))), false},
		"no ID":      {config(configuration(raft.Server{Address: "a:1"})), false},
		"no address": {config(configuration(raft.Server{ID: "a"})), false},
		"long ID":    {config(configuration(voter(strings.Repeat("a", 1025)))), false},
		"long":       {config(append(configuration(voter("s1")), make([]byte, 256<<10)...)), false},
	}
}

func voteCases() map[string]checkCase {
	return map[string]checkCase{
		"large term": {&raft.AppendEntriesRequest{Term: 1<<64 - 1}, false},
		"vote":       {&raft.RequestVoteRequest{Term: 4}, true},
		"vote, term": {&raft.RequestVoteRequest{Term: 1<<20 + 4}, false},
		"vote, ID":   {&raft.RequestVoteRequest{RPCHeader: raft.RPCHeader{ID: make([]byte, 1025)}, Term: 4}, false},
		//lint:ignore SA1019 raft reads it of servers that set it
		"vote, address":  {&raft.RequestVoteRequest{Candidate: make([]byte, 1025), Term: 4}, false},
		"pre-vote":       {&raft.RequestPreVoteRequest{Term: 4}, true},
		"pre-vote, term": {&raft.RequestPreVoteRequest{Term: 1 << 63}, false},
		"timeout now":    {&raft.TimeoutNowRequest{}, true},
		"nothing":        {nil, false},
	}
}

func snapshotCases() map[string]checkCase {
	snapshot := func(change func(*raft.InstallSnapshotRequest)) any { q := goodSnapshot(); change(q); return q }
	return map[string]checkCase{
		"snapshot":       {goodSnapshot(), true},
		"version":        {snapshot(func(q *raft.InstallSnapshotRequest) { q.SnapshotVersion = 0 }), false},
		"of garbage":     {snapshot(func(q *raft.InstallSnapshotRequest) { q.Configuration = []byte("garbage") }), false},
		"of nobody":      {snapshot(func(q *raft.InstallSnapshotRequest) { q.Configuration = configuration() }), false},
		"of later":       {snapshot(func(q *raft.InstallSnapshotRequest) { q.ConfigurationIndex = 10 }), false},
		"of nothing":     {snapshot(func(q *raft.InstallSnapshotRequest) { q.LastLogIndex, q.ConfigurationIndex = 0, 0 }), false},
		"of far ahead":   {snapshot(func(q *raft.InstallSnapshotRequest) { q.LastLogIndex = 1 << 63 }), false},
		"of a term":      {snapshot(func(q *raft.InstallSnapshotRequest) { q.LastLogTerm = 4 }), false},
		"of no term":     {snapshot(func(q *raft.InstallSnapshotRequest) { q.LastLogTerm = 0 }), false},
		"of no size":     {snapshot(func(q *raft.InstallSnapshotRequest) { q.Size = -1 }), false},
		"in a past term": {snapshot(func(q *raft.InstallSnapshotRequest) { q.Term = 2 }), false},
		"in a term":      {snapshot(func(q *raft.InstallSnapshotRequest) { q.Term = 1 << 63 }), false},
	}
}

// What raft would panic on, now or at its next start, or could never leave again, is refused before it has it.
func TestRaftRequestsAreCheckedBeforeRaftHasThem(t *testing.T) {
	for _, cases := range []map[string]checkCase{entryCases(), configurationCases(), voteCases(), snapshotCases()} {
		for name, c := range cases {
			err := at(3, 4, map[uint64]uint64{3: 2, 4: 2}).Check(c.request)
			if (err == nil) != c.ok || err != nil && !errors.Is(err, raftwire.ErrBadRequest) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	for term, ok := range map[uint64]bool{1: true, 1 << 48: true, 1<<48 + 1: false} { // of a server that has none
		if err := at(0, 0, nil).Check(&raft.AppendEntriesRequest{Term: term}); (err == nil) != ok {
			t.Errorf("term %d at a new server: %v", term, err)
		}
	}
}

func FuzzConfiguration(f *testing.F) {
	f.Add(configuration(voter("s1"), voter("s2")))
	f.Add([]byte("garbage"))
	f.Fuzz(func(t *testing.T, b []byte) {
		boundedtest.Memory(t, len(b), 256<<10, 512, func() { raftwire.DecodeConfiguration(b) })
	})
}
