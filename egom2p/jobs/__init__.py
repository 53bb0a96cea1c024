"""What every long command needs: progress, worker processes, the ledger of finished parts."""
