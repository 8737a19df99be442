package cluster

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// ownerKey is where the log's store has the owner, beside raft's term and vote. Older builds do not look there.
var ownerKey = []byte("KeyringOwner")

// owner is the server that a raft directory belongs to. The log and the vote in it are this server's alone: under another ID
// they are a vote given twice, and entries that a majority is believed to have.
type owner struct {
	Server  raft.ServerID `json:"server"`
	Cluster string        `json:"cluster,omitempty"` // for people; empty for a server alone
}

// owner returns the owner of the directory, or nothing if none is written: an older build has made it, or nobody has begun to.
func (d *Dir) owner() (o owner, err error) {
	b, err := d.Log.Get(ownerKey)
	if errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return o, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &o)
	}
	if err != nil {
		return o, fmt.Errorf("raft log %s: read its owner: %w", d.path, err)
	}
	return o, nil
}

// checkOwner is an error, which ends with the advice, if the directory is another server's. One in which there is no log and no
// snapshot is nobody's.
func (d *Dir) checkOwner(id raft.ServerID, advice string) error {
	known, err := d.Known()
	if err != nil || !known {
		return err
	}
	o, err := d.owner()
	if err != nil || o.Server == "" || o.Server == id {
		return err
	}
	whose := fmt.Sprintf("%s's raft", o.Server)
	if o.Cluster != "" {
		whose += fmt.Sprintf(", of cluster %q", o.Cluster)
	}
	return fmt.Errorf("this directory is %s: %s; %s", whose, d.path, advice)
}

// own writes down that the directory is this server's. It refuses another server's.
func (d *Dir) own(id raft.ServerID, cluster string) error {
	advice := fmt.Sprintf("give %s an empty directory: it gets everything from the others", id)
	if err := d.checkOwner(id, advice); err != nil {
		return err
	}
	is, err := d.owner()
	want := owner{id, cluster}
	if err == nil && is == want {
		return nil
	}
	b, err := json.Marshal(want)
	if err == nil {
		err = d.Log.Set(ownerKey, b)
	}
	if err != nil {
		return fmt.Errorf("write the owner of %s: %w", d.path, err)
	}
	return nil
}
