package raftwire_test

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"example.com/keyring/internal/raftwire"
	"github.com/hashicorp/raft"
)

// around is a Transport that takes all terms.
func around(t *testing.T, inner raftwire.Inner) raft.Transport {
	trans := raftwire.New(inner, raftwire.Checks{
		View:    func() (raftwire.View, error) { return raftwire.View{}, nil },
		Section: func(r io.Reader) (io.Reader, error) { return r, nil },
		Refused: func(err error) { t.Error(err) },
	})
	t.Cleanup(trans.Stop)
	return trans
}

// sent is a transport that keeps what is sent, and of which call number fails is refused or lost.
type sent struct {
	*raft.InmemTransport
	requests []raft.AppendEntriesRequest
	fails    int
	err      error
}

func (s *sent) AppendEntries(_ raft.ServerID, _ raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	s.requests = append(s.requests, *args)
	if len(s.requests) == s.fails {
		*resp = raft.AppendEntriesResponse{Term: args.Term + 1, NoRetryBackoff: true}
		return s.err
	}
	resp.Term, resp.LastLog, resp.Success = args.Term, uint64(len(s.requests)), true
	return nil
}

// randomRequest has entries of all sizes, up to twice data.
func randomRequest(rnd *rand.Rand, data []byte) *raft.AppendEntriesRequest {
	limit := len(data) / 2
	req := &raft.AppendEntriesRequest{Term: 7, PrevLogEntry: 40, PrevLogTerm: 3, LeaderCommitIndex: 40 + rnd.Uint64N(80), RPCHeader: raft.RPCHeader{Addr: []byte("l")}}
	for i := range rnd.IntN(64) {
		size := rnd.IntN(limit >> rnd.IntN(8))
		if rnd.IntN(8) == 0 {
			size = rnd.IntN(4 * limit)
		}
		req.Entries = append(req.Entries, &raft.Log{Index: 41 + uint64(i), Term: 3 + uint64(i)/8, Data: data[:size/2], Extensions: data[:size/2]})
	}
	return req
}

func TestRequestsAreSplit(t *testing.T) {
	const limit = 1 << 20
	lost := errors.New("lost")
	rnd := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 2*limit)
	_, inmem := raft.NewInmemTransport("a")
	for range 500 {
		req := randomRequest(rnd, data)
		before := *req
		s := &sent{InmemTransport: inmem, fails: rnd.IntN(6)}
		if rnd.IntN(2) == 0 {
			s.err = lost
		}
		resp := raft.AppendEntriesResponse{NoRetryBackoff: true} // of an earlier call
		err := around(t, s).AppendEntries("b", "b", req, &resp)

		var got []*raft.Log
		prev := raft.Log{Index: 40, Term: 3}
		for i, r := range s.requests {
			size := 0
			for _, e := range r.Entries {
				size += len(e.Data) + len(e.Extensions)
			}
			got = append(got, r.Entries...)
			commit := req.LeaderCommitIndex
			if len(got) < len(req.Entries) {
				commit = min(commit, got[len(got)-1].Index)
			}
			if size > limit && len(r.Entries) > 1 || len(r.Entries) == 0 && len(req.Entries) > 0 {
				t.Fatalf("request %d: %d bytes in %d entries", i, size, len(r.Entries))
			}
			if r.Term != 7 || string(r.Addr) != "l" || r.PrevLogEntry != prev.Index || r.PrevLogTerm != prev.Term || r.LeaderCommitIndex != commit {
				t.Fatalf("request %d of %d: %+v after %d, %d, want commit index %d", i, len(s.requests), r, prev.Index, prev.Term, commit)
			}
			if len(got) > 0 {
				prev = *got[len(got)-1]
			}
		}
		failed := s.fails > 0 && len(s.requests) == s.fails
		if !slices.Equal(got, req.Entries[:len(got)]) || (len(got) < len(req.Entries)) && !failed || len(s.requests) > s.fails && s.fails > 0 {
			t.Fatalf("%d of %d entries in %d requests, the %d. fails", len(got), len(req.Entries), len(s.requests), s.fails)
		}
		want := raft.AppendEntriesResponse{Term: 7, LastLog: uint64(len(s.requests)), Success: true}
		if failed {
			want = raft.AppendEntriesResponse{Term: 8, NoRetryBackoff: true}
		}
		if resp.Term != want.Term || resp.LastLog != want.LastLog || resp.Success != want.Success || resp.NoRetryBackoff != want.NoRetryBackoff || failed && err != s.err || !failed && err != nil {
			t.Fatalf("%+v, %v, want %+v", resp, err, want)
		}
		if before.PrevLogEntry != req.PrevLogEntry || before.LeaderCommitIndex != req.LeaderCommitIndex || len(before.Entries) != len(req.Entries) {
			t.Fatal("raft's request is changed")
		}
	}
}

// TestEntryThatIsTooLongIsNamed, and those before it go out.
func TestEntryThatIsTooLongIsNamed(t *testing.T) {
	_, inmem := raft.NewInmemTransport("a")
	s := &sent{InmemTransport: inmem}
	most, more := make([]byte, raftwire.MaxEntry), make([]byte, raftwire.MaxEntry+1)
	req := &raft.AppendEntriesRequest{Entries: []*raft.Log{{Index: 41, Data: most}, {Index: 42, Data: more}, {Index: 43}}}
	err := around(t, s).AppendEntries("b", "b", req, &raft.AppendEntriesResponse{})
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("an entry, 42, of %d bytes", len(more))) {
		t.Errorf("the error is %v", err)
	}
	if len(s.requests) != 1 || len(s.requests[0].Entries) != 1 || s.requests[0].Entries[0].Index != 41 {
		t.Errorf("%d requests went out", len(s.requests))
	}
}

// Raft finds out by assertion whether a transport can ask before it votes, and be closed.
func TestSplittingKeepsWhatATransportCan(t *testing.T) {
	_, inner := raft.NewInmemTransport("a")
	trans := around(t, inner)
	if _, ok := trans.(raft.WithPreVote); !ok {
		t.Error("no pre-vote")
	}
	if _, ok := trans.(raft.WithClose); !ok {
		t.Error("no Close")
	}
}
