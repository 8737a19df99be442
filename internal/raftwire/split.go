package raftwire

import (
	"fmt"

	"github.com/hashicorp/raft"
)

// MaxEntry is the most bytes of one entry that goes in a request: a command of 4 MiB, and what it has beside it. A frame of
// the other side, peer.MaxFrame, has room for it.
const MaxEntry = 4<<20 + 32<<10

// batchLimit is how many bytes of entries go in one request of raft's. Raft itself bounds only how many
// entries do, and the other side takes no frame beyond peer.MaxFrame.
const batchLimit = 1 << 20

// Inner is what a raft.NetworkTransport is to raft. Raft asks for the last two by assertion.
type Inner interface {
	raft.Transport
	raft.WithPreVote
	raft.WithClose
}

// splitter splits the requests that carry many bytes.
type splitter struct{ Inner }

// AppendEntries implements raft.Transport. A request of more than batchLimit bytes goes as
// several, in order, up to the first that is not answered with success. Those before it stay
// in the follower's log, where raft finds them when it tries again. An entry of more than MaxEntry bytes is not sent: raft logs
// the error each time it tries.
func (t splitter) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	rest := args.Entries
	part := *args
	for {
		n := batch(rest)
		if n > 0 && bytesOf(rest[0]) > MaxEntry {
			return fmt.Errorf("raft's log has an entry, %d, of %d bytes, and no more than %d are sent to other servers: "+
				"stop this server until another leads, and start it again: then its log no longer has the entry", rest[0].Index, bytesOf(rest[0]), MaxEntry)
		}
		part.Entries, rest = rest[:n], rest[n:]
		part.LeaderCommitIndex = args.LeaderCommitIndex
		if len(rest) > 0 {
			part.LeaderCommitIndex = min(args.LeaderCommitIndex, part.Entries[n-1].Index)
		}
		*resp = raft.AppendEntriesResponse{}
		err := t.Inner.AppendEntries(id, target, &part, resp)
		if err != nil || !resp.Success || len(rest) == 0 {
			return err
		}
		last := part.Entries[n-1]
		part.PrevLogEntry, part.PrevLogTerm = last.Index, last.Term
	}
}

// batch returns how many of the entries go together: as many as fit batchLimit, and at least
// one if there are any.
func batch(entries []*raft.Log) int {
	size := 0
	for i, e := range entries {
		size += bytesOf(e)
		if i > 0 && size > batchLimit {
			return i
		}
	}
	return len(entries)
}

func bytesOf(e *raft.Log) int { return len(e.Data) + len(e.Extensions) }
