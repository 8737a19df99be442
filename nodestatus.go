package keyring

import (
	"context"
	"errors"
)

// Status is Keyring.Status of the leader, wherever it is called: some of it only the leader knows. Its
// Keys and NoBackup are as this server has them. As long as ctx lets it, it waits for a leader that
// answers. What any one server knows is Keyring().Status there.
func (n *Node) Status(ctx context.Context) (s Status, err error) {
	err = n.whenLed(ctx, func() error {
		if err := n.keys.Leading(); !errors.Is(err, ErrNotLeader) {
			if err == nil {
				s, err = n.keys.Status(ctx)
			}
			return err
		}
		b, err := n.forward(ctx, callTimeout, pathStatus, nil, nil)
		if err != nil {
			return err
		}
		s, err = n.keys.DecodeStatus(b)
		return err
	})
	return s, err
}
